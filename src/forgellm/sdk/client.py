"""`forgellm.ForgeLLMClient`: the REST API as Python calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO
from urllib.parse import quote

from forgellm.sdk.conversation_routes import ConversationRoutes
from forgellm.sdk.data_routes import DataRoutes
from forgellm.sdk.model_routes import ModelRoutes
from forgellm.sdk.replies import Reply, error_of
from forgellm.sdk.run_routes import RunRoutes
from forgellm.sdk.streams import follow_training
from forgellm.sdk.transport import given


class ForgeLLMClient(RunRoutes, DataRoutes, ConversationRoutes, ModelRoutes):
    """Talks to a web server. Each method is one route and returns the server's reply as a dict.

    A failure is a reply too: `success` is false, and `error`, `error_code`, `details` and
    `suggestion` say why. With `raise_errors` it is raised instead, as the class of
    `forgellm.errors` that has its code. What leaves no reply is raised in either case: a server
    that does not answer (`Unavailable`), and an error inside a stream or inside training events.
    """

    # Training

    def start_training(self, config: Mapping[str, Any]) -> Reply:
        """`config` holds the fields of a recipe; the reply has `training_id` and `output_dir`."""
        return self._post("/api/training/start", dict(config))

    def get_training_status(self) -> Reply:
        """The run that trains, else the last one."""
        return self._get("/api/training/status")

    def stop_training(self) -> Reply:
        return self._post("/api/training/stop")

    def resume_training(
        self,
        training_id: str | None = None,
        *,
        output_dir: str | None = None,
        allow_changed_base: bool = False,
    ) -> Reply:
        """Continue a run, given by its id or its folder, from its newest intact checkpoint."""
        wanted = {
            "training_id": training_id,
            "output_dir": output_dir,
            "allow_changed_base": allow_changed_base or None,
        }
        return self._post("/api/training/resume", given(wanted))

    def publish_checkpoint(
        self,
        checkpoint_path: str,
        training_dir: str | None = None,
        *,
        dtype: str = "stored",
        run_async: bool = False,
        allow_changed_base: bool = False,
    ) -> Reply:
        """Make a model of a checkpoint; `dtype` float32 keeps its weights exactly. With `run_async`
        the reply is a job, at once."""
        body = given({"checkpoint_path": checkpoint_path, "training_dir": training_dir})
        body["dtype"] = dtype
        body |= given({"allow_changed_base": allow_changed_base or None})
        return self._post("/api/training/publish_checkpoint", body | {"async": run_async})

    def parse_recipe(self, text: str) -> Reply:
        """The fields that a recipe's text (YAML or JSON) names, checked."""
        return self._post("/api/recipes/parse", {"text": text})

    def estimate(self, config: Mapping[str, Any]) -> Reply:
        """Memory, disk and time of a recipe, without starting it."""
        return self._post("/api/estimate", dict(config))

    def list_hosts(self) -> Reply:
        """Names and addresses of the machines in `hosts.toml`; they are not contacted."""
        return self._get("/api/hosts")

    def training_events(
        self, training_id: str | None = None, *, poll_seconds: float = 1.0
    ) -> Iterator[Reply]:
        """A run's updates as they come, the last of them its end; without an id, the current run's.

        Each has `event`: `training_update` for each line of the run's metrics, from its first one
        on, then `training_complete` or `training_error`, with the fields of the Socket.IO events.
        Raises ForgeError.
        """
        return follow_training(self, training_id, poll_seconds)

    # Models

    def load_model(
        self,
        model_name: str,
        adapter_path: str | None = None,
        *,
        engine: str | None = None,
        dtype: str | None = None,
        kv_bits: int | None = None,
        beside: bool = False,
        allow_changed_base: bool = False,
    ) -> Reply:
        """Begin loading; the reply comes at once, and generating waits until it is there.

        With `beside` what is loaded stays, if memory suffices.
        """
        body = {
            "adapter_path": adapter_path,
            "engine": engine,
            "dtype": dtype,
            "kv_bits": kv_bits,
            "beside": beside or None,
            "allow_changed_base": allow_changed_base or None,
        }
        return self._post("/api/model/load", {"model_name": model_name} | given(body))

    def model_status(self) -> Reply:
        return self._get("/api/model/status")

    def unload_model(
        self, model_name: str | None = None, *, adapter_path: str | None = None
    ) -> Reply:
        """Free the memory of one model, or without a name of all."""
        body = given({"model_name": model_name, "adapter_path": adapter_path})
        return self._post("/api/model/unload", body or None)

    def generate_text(
        self,
        prompt: str,
        model_name: str | None = None,
        *,
        adapter_path: str | None = None,
        beside: bool = False,
        **kwargs: Any,
    ) -> Reply:
        """Load the model, unless none is named, and answer; the reply has `response`.

        With `beside` it is loaded beside others, which may answer at the same time.

        `kwargs` are the other fields of `POST /api/model/generate`: `history`, `max_tokens`,
        `temperature`, `top_p`, `repetition_penalty`, `seed`, `is_base_model`, `top_logprobs`.
        """
        if model_name is not None:
            loading = self.load_model(model_name, adapter_path, beside=beside)
            if not loading["success"]:  # else the model before would answer in its name
                return loading
        named = given({"model_name": model_name, "adapter_path": adapter_path})
        body = {"prompt": prompt, **named, **kwargs, "streaming": False}
        return self._post("/api/model/generate", body)

    def stream_text(
        self,
        prompt: str,
        model_name: str | None = None,
        *,
        adapter_path: str | None = None,
        beside: bool = False,
        **kwargs: Any,
    ) -> Iterator[str]:
        """As `generate_text`, in pieces as they are made. Closing the iterator stops the answer.

        Raises ForgeError, whatever `raise_errors` says.
        """
        if model_name is not None:
            loading = self.load_model(model_name, adapter_path, beside=beside)
            if not loading["success"]:
                raise error_of(loading)
        named = given({"model_name": model_name, "adapter_path": adapter_path})
        body = {"prompt": prompt, **named, **kwargs, "streaming": True}
        yield from self._stream("/api/model/generate", body)

    def cancel_generation(self, request_id: str | None = None) -> Reply:
        """End the answer that was asked for with this `request_id`; without one, every answer."""
        return self._post("/api/model/cancel", given({"request_id": request_id}))

    def list_models(self) -> Reply:
        """What is on this machine: `cached_models`, models by kind, such as `cached_models`, `ift_models`."""
        return self._get("/api/models")

    def search_models(self, query: str) -> Reply:
        """Models on this machine whose name contains every word of `query`."""
        return self._get("/api/models/search", q=query)

    def download_model(self, model_name: str, revision: str = "main") -> Reply:
        """Bring a model from the hub; the reply has the `job_id`, at once."""
        body = {"model_name": model_name, "revision": revision}
        return self._post("/api/models/download", body)

    def push_model(
        self, model_name: str, repo_id: str, *, private: bool = True, dry_run: bool = False
    ) -> Reply:
        """Send `published/NAME` or `exported/NAME` to the hub; the reply has the `job_id`."""
        body = {"model_name": model_name, "repo_id": repo_id}
        return self._post("/api/models/push", {**body, "private": private, "dry_run": dry_run})

    def export_model(self, model_name: str, *, format: str = "gguf", type: str = "Q8_0") -> Reply:
        """Write the model in another format to `models/exported/`; the reply is a job.

        `format` is gguf, or peft, mlx or gguf-lora for the adapter of a run (`RUN` or `RUN@300`).
        """
        body = {"model_name": model_name, "format": format, "type": type}
        return self._post("/api/models/export", body)

    def quantize_model(self, model_name: str, *, bits: int = 4, group_size: int = 64) -> Reply:
        """Round its weights to `published/NAME-4bit-g64`; the reply is a job."""
        body = {"model_name": model_name, "bits": bits, "group_size": group_size}
        return self._post("/api/models/quantize", body)

    def list_exports(self) -> Reply:
        """What lies in `models/exported/`: `exports`, newest first."""
        return self._get("/api/models/exports")

    def delete_export(self, name: str) -> Reply:
        """Delete an export for good."""
        return self._delete(f"/api/models/exports/{quote(name, safe='')}")

    def models_tree(self) -> Reply:
        """What was made from what, with the commands that would make it again."""
        return self._get("/api/models/tree")

    def delete_model(self, model_name: str) -> Reply:
        """Delete a base, downloaded or published model for good."""
        return self._delete(f"/api/models/{quote(model_name)}")

    def prepare_demo(self) -> Reply:
        """Bring the demo's model and documents; the job's result has the recipe to start."""
        return self._post("/api/demo/prepare")

    # Jobs: downloads and publishing

    def list_jobs(self) -> Reply:
        return self._get("/api/jobs")

    def get_job(self, job_id: str) -> Reply:
        return self._get(f"/api/jobs/{quote(job_id, safe='')}")

    def cancel_job(self, job_id: str) -> Reply:
        return self._post(f"/api/jobs/{quote(job_id, safe='')}/cancel")

    # Checkpoints and figures

    def checkpoints(self, training_dir: str | None = None, *, rank_by: str | None = None) -> Reply:
        """Checkpoints of a run, else of the current or the last one."""
        return self._get("/api/checkpoints", training_dir=training_dir, rank_by=rank_by)

    def evaluate(self, model: str, **options: Any) -> Reply:
        """Start a job that measures a model, a run or a checkpoint.

        Options: `probe_files`, `general_files`, `engine`, `dtype`.
        """
        return self._post("/api/evaluate", {"model": model, **options})

    def dashboard_data(self, training_dir: str | None = None) -> Reply:
        return self._get("/api/dashboard/data", training_dir=training_dir)

    def dashboard_realtime(self) -> Reply:
        return self._get("/api/dashboard/realtime")

    # The server

    def health(self) -> Reply:
        return self._get("/api/health")

    def browse(self, path: str | None = None) -> Reply:
        """Folders and files below a folder of the workspace."""
        return self._get("/api/filesystem/browse", path=path)

    def upload_file(self, dataset: str, file: str, content: bytes | BinaryIO) -> Reply:
        """Put a file into a dataset; both are made if they are new."""
        return self._send("PUT", _file_route(dataset, file), content=content)

    def delete_file(self, dataset: str, file: str) -> Reply:
        """For good."""
        return self._delete(_file_route(dataset, file))


def _file_route(dataset: str, file: str) -> str:
    return f"/api/datasets/{quote(dataset, safe='')}/files/{quote(file, safe='')}"
