"""The SDK examples of the specification, and our own clients, against `forgellm start`."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from forgellm import ForgeLLMClient, errors
from forgellm.paths import Workspace
from forgellm.runs.store import active_run
from forgellm.supervisor import stop_training
from serving import PATIENCE_SECONDS, eventually
from spec_lines import SPEC, needs_spec
from tiny_workspace import build_tiny_workspace

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "src" / "forgellm" / "web" / "static"
RECIPE = {
    "model_name": "tiny", "dataset": "notes", "max_iterations": 6, "batch_size": 1,
    "max_seq_length": 64, "save_every": 3,
}  # fmt: skip
NODE = shutil.which("node")

needs_node = pytest.mark.skipif(NODE is None, reason="needs Node")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return build_tiny_workspace(tmp_path_factory.mktemp("workspace"), seed=1)


@pytest.fixture(scope="module")
def url(workspace: Workspace) -> Iterator[str]:
    """Of the web server of `forgellm start`."""
    ports = [str(_free_port()), str(_free_port())]
    with subprocess.Popen(
        [sys.executable, "-m", "forgellm", "start", "--web-port", ports[0], "--server-port", ports[1]],
        cwd=workspace.root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        address = f"http://localhost:{ports[0]}"
        try:
            with ForgeLLMClient(address) as client:
                eventually(lambda: process.poll() is not None or _is_healthy(client))
            yield address
        finally:
            if active_run(workspace):
                stop_training(workspace)
                eventually(lambda: active_run(workspace) is None)
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE_SECONDS)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _is_healthy(client: ForgeLLMClient) -> bool:
    try:
        return client.health()["status"] == "healthy"
    except errors.Unavailable:
        return False


@pytest.fixture
def client(url: str, workspace: Workspace) -> Iterator[ForgeLLMClient]:
    """With nothing training before and after."""
    with ForgeLLMClient(url) as found:
        yield found
    eventually(lambda: active_run(workspace) is None)


def example(language: str, url: str) -> str:
    """The spec's example with our model, our dataset and our port."""
    text = re.search(rf"SDK Example\n\n```{language}\n(.*?)```", SPEC.read_text(), re.DOTALL)
    assert text is not None
    code = text[1].replace("mlx-community/Qwen3-4B-bf16", "tiny").replace("my_domain", "notes")
    return code.replace("http://localhost:5002", url)


@needs_spec
def test_python_example_of_the_spec_trains_and_generates(client: ForgeLLMClient, url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", example("python", url)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    started, generated = done.stdout.split("\n", 1)
    assert re.fullmatch(r"Training started: cpt_\d{8}_\d{6}(_\d+)?", started)
    assert re.fullmatch(r"Generated: .*\S.*", generated, re.DOTALL)
    client.stop_training()


@needs_spec
@needs_node
def test_javascript_example_of_the_spec_trains_and_generates(
    client: ForgeLLMClient, url: str
) -> None:
    out = node(example("javascript", url))
    rest, num_started = re.subn(
        r"^Training started: cpt_\d{8}_\d{6}.*\n", "", out, flags=re.MULTILINE
    )
    assert num_started == 1
    # The text is drawn at random, and may begin with an empty line.
    assert re.fullmatch(r"Generated: .*\S.*", rest, re.DOTALL)
    client.stop_training()


def node(code: str, *, module: bool = False) -> str:
    assert NODE is not None
    kind = ["--input-type=module"] if module else ["--input-type=commonjs"]
    done = subprocess.run([NODE, *kind, "-e", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_client_trains_and_follows_the_run_to_its_end(client: ForgeLLMClient) -> None:
    started = client.start_training(RECIPE)
    assert started["success"] is True, started
    *updates, end = client.training_events(started["training_id"], poll_seconds=0.05)
    assert {update["event"] for update in updates} == {"training_update"}
    reported = [u["iteration"] for u in updates if u["training_loss"] is not None]
    assert reported == [1, 2, 3, 4, 5, 6]
    assert updates[-1]["progress_percentage"] == 100.0
    assert (end["event"], end["final_iteration"], end["stopped"]) == ("training_complete", 6, False)
    assert end["output_dir"] == started["output_dir"]
    assert sorted(end["best_checkpoints"]) == [3, 6]
    again = list(client.training_events(started["training_id"], poll_seconds=0.05))
    assert [e["event"] for e in again] == [e["event"] for e in [*updates, end]]
    assert client.get_run(started["training_id"])["run"]["phase"] == "completed"


def test_client_stops_and_resumes_a_run(client: ForgeLLMClient) -> None:
    started = client.start_training({**RECIPE, "max_iterations": 1_000_000, "save_every": 1000})
    eventually(lambda: (client.get_training_status()["current_iteration"] or 0) > 2)
    assert client.start_training(RECIPE)["error_code"] == "TRAINING_ALREADY_RUNNING"
    assert client.stop_training()["success"] is True
    *_, end = client.training_events(started["training_id"], poll_seconds=0.05)
    assert (end["event"], end["stopped"]) == ("training_complete", True)
    assert client.resume_training(started["training_id"])["success"] is True
    assert client.stop_training()["success"] is True


def test_streamed_text_is_the_generated_text(client: ForgeLLMClient) -> None:
    ask = {"max_tokens": 12, "temperature": 0}
    whole = client.generate_text("The tide", "tiny", **ask)
    assert whole["success"] is True, whole
    pieces = list(client.stream_text("The tide", **ask))
    assert len(pieces) > 1
    assert "".join(pieces) == whole["response"]
    assert client.model_status()["model_name"] == "tiny"


def test_a_stream_that_is_left_leaves_the_server_free(client: ForgeLLMClient) -> None:
    stream = client.stream_text("The tide", "tiny", max_tokens=400, temperature=0)
    assert next(iter(stream))
    stream.close()  # type: ignore[attr-defined]
    assert client.generate_text("The tide", max_tokens=2)["success"] is True


def test_a_model_that_is_not_there_never_answers_in_its_name(client: ForgeLLMClient) -> None:
    client.load_model("tiny")
    reply = client.generate_text("The tide", "nobody")
    assert (reply["success"], reply["error_code"]) == (False, "MODEL_NOT_FOUND")
    with pytest.raises(errors.ModelNotFound):
        next(iter(client.stream_text("The tide", "nobody")))


def test_failures_are_raised_as_their_classes_when_asked_for(url: str) -> None:
    with ForgeLLMClient(url, raise_errors=True) as client:
        with pytest.raises(errors.ModelNotFound) as found:
            client.load_model("nobody")
        assert found.value.details["model_name"] == "nobody"
        assert "models/base/" in found.value.details["searched_paths"]
        with pytest.raises(errors.ConfigError, match="batch_size"):
            client.start_training({**RECIPE, "batch_size": 0})
        with pytest.raises(errors.RunNotFound):
            client.get_run("nobody")
        with pytest.raises(errors.NoActiveTraining):
            client.stop_training()


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with ForgeLLMClient(f"http://localhost:{_free_port()}") as client:
        with pytest.raises(errors.Unavailable, match="does not answer"):
            client.health()
        with pytest.raises(errors.Unavailable, match="does not answer"):
            list(client.stream_text("Hello"))


USES = """
const client = new ForgeLLMClient(process.env.URL || URL_OF_SERVER);
const found = {};
const started = await client.startTraining(RECIPE);
found.training_id = started.training_id;
found.events = [];
for await (const event of client.trainingEvents(started.training_id, { pollMilliseconds: 50 })) {
    found.events.push(event.event);
}
const ask = { max_tokens: 12, temperature: 0 };
found.whole = (await client.generateText('The tide', 'tiny', ask)).response;
found.pieces = [];
for await (const piece of client.streamText('The tide', 'tiny', ask)) found.pieces.push(piece);
for await (const piece of client.streamText('The tide', 'tiny', { max_tokens: 400 })) break;
found.missing = (await client.generateText('The tide', 'nobody')).error_code;
found.stopped = await client.streamText('x', 'nobody').next().catch((error) => error.code);
const strict = new ForgeLLMClient(URL_OF_SERVER, { throwErrors: true });
found.thrown = await strict.getRun('nobody').catch((error) => [error.name, error.code]);
console.log(JSON.stringify(found));
"""


@needs_node
@pytest.mark.parametrize("style", ["module", "script"])
def test_javascript_client_trains_follows_and_streams(
    style: str, client: ForgeLLMClient, url: str
) -> None:
    names = f"const URL_OF_SERVER = {json.dumps(url)}, RECIPE = {json.dumps(RECIPE)};"
    if style == "module":
        load = (
            f"import {{ ForgeLLMClient }} from {json.dumps(str(STATIC / 'forgellm-client.mjs'))};"
        )
        out = node(load + names + USES, module=True)
    else:  # as a page's plain script sees it
        text = json.dumps((STATIC / "forgellm-client.js").read_text())
        load = f"require('vm').runInThisContext({text});"
        out = node(f"{load}{names}(async () => {{{USES}}})();")
    found = json.loads(out)
    assert re.match(r"cpt_\d{8}_\d{6}", found["training_id"])
    assert found["events"][-1] == "training_complete"
    assert found["events"].count("training_update") >= 6
    assert len(found["pieces"]) > 1
    assert "".join(found["pieces"]) == found["whole"]
    assert found["missing"] == found["stopped"] == "MODEL_NOT_FOUND"
    assert found["thrown"] == ["ForgeLLMError", "RUN_NOT_FOUND"]
