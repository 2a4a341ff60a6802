"""vLLM's command line for a model of this machine and adapters of it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from forgellm import hardware
from forgellm.atomic import write_json
from forgellm.catalog import ModelFolder
from forgellm.catalog.safety import check_model_files
from forgellm.data.chat.turn_ends import stop_ids
from forgellm.data.tokenizer import CHAT_TEMPLATE_NAME, Tokenizer
from forgellm.engines.adapter import settings_beside
from forgellm.engines.chat_files import GENERATION_NAME
from forgellm.errors import EngineUnavailable, InvalidRequest, UnsupportedModel
from forgellm.generation.loading import Source, find_source, require_own_base
from forgellm.model_server.openai_models import id_of
from forgellm.model_server.upstream.models import Named
from forgellm.paths import Workspace
from forgellm.publishing.adapter_exports import write_peft
from forgellm.schema.generation import LoadRequest

PROGRAM_VARIABLE = "FORGELLM_VLLM"
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank may be


@dataclass(frozen=True)
class Adapter:
    """An adapter and the names it is asked for by."""

    named: Named
    weights: Path


@dataclass(frozen=True)
class Wanted:
    """What vLLM is to serve."""

    model: Path
    named: Named
    adapters: tuple[Adapter, ...] = ()

    @property
    def known(self) -> list[Named]:
        """The last one answers first."""
        return [self.named, *(adapter.named for adapter in self.adapters)]


def find_vllm() -> str:
    """The program. Raises EngineUnavailable without it or without an NVIDIA GPU."""
    beside = Path(sys.executable).with_name("vllm")
    named = os.environ.get(PROGRAM_VARIABLE)
    found = shutil.which(named or (str(beside) if beside.is_file() else "vllm"))
    if found is None:
        raise EngineUnavailable(
            "vLLM is not installed",
            suggestion="Install it in a Python environment of its own (pip install vllm), and give"
            f" the place of its program in {PROGRAM_VARIABLE}, such as ~/vllm/bin/vllm.",
        )
    if hardware.gpu() is None:
        raise EngineUnavailable(
            "vLLM needs an NVIDIA GPU, and nvidia-smi finds none",
            suggestion="Without --backend, ForgeLLM's own engines answer.",
        )
    return found


def find_wanted(
    model: str, adapters: Sequence[str], workspace: Workspace, allow_changed_base: bool = False
) -> Wanted:
    """The files that the user of this machine names.

    Raises what `find_source` and `require_own_base` raise, UnsupportedModel for what vLLM does not read, and
    InvalidRequest for adapters that do not go together.
    """
    requests = [
        LoadRequest(model_name=model, adapter_path=adapter, allow_changed_base=allow_changed_base)
        for adapter in adapters
    ]
    sources = [find_source(request, workspace, allow_absolute=True) for request in requests]
    for source in sources:
        require_own_base(source)
    base = LoadRequest(model_name=model, adapter_path=None)
    if not sources:
        folder = find_source(base, workspace, allow_absolute=True).model
    elif len(folders := {source.model for source in sources}) == 1:
        (folder,) = folders
    else:
        raise InvalidRequest("These adapters were trained on different models")
    _require_plain(folder)
    return Wanted(
        folder,
        _named(base, Source(folder, None, "auto", "auto"), workspace),
        tuple(
            Adapter(_named(request, source, workspace), _adapter_file(source, request))
            for request, source in zip(requests, sources, strict=True)
        ),
    )


def build_command(program: str, wanted: Wanted, port: int, scratch: Path) -> list[str]:
    """Adapters are written in PEFT's layout to `scratch`.

    Raises UnsupportedModel, CheckpointCorrupt, InvalidRequest.
    """
    command = [program, "serve", str(wanted.model), "--served-model-name", wanted.named.id]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--allowed-origins", "[]", "--disable-uvicorn-access-log"]
    template = _chat_template(wanted)
    command += ["--generation-config", str(_generation_config(wanted.model, template, scratch))]
    if template:
        command += ["--chat-template", str(template)]
    if not wanted.adapters:
        return command
    base = ModelFolder(wanted.named.id, wanted.model, "base", check_model_files(wanted.model))
    modules = []
    for number, adapter in enumerate(wanted.adapters):
        folder = scratch / f"adapter-{number}"
        folder.mkdir()
        write_peft(adapter.weights, wanted.named.id, base, folder)
        modules.append(json.dumps({"name": adapter.named.id, "path": str(folder)}))
    rank = max(settings_beside(adapter.weights).rank for adapter in wanted.adapters)
    command += ["--enable-lora", "--max-loras", str(len(modules))]
    command += ["--max-lora-rank", str(_allowed_rank(rank))]
    return [*command, "--lora-modules", *modules]


def _named(request: LoadRequest, source: Source, workspace: Workspace) -> Named:
    name = id_of(request, source, workspace)
    folder = source.adapter.parent if source.adapter else None
    has_template = Tokenizer.load(source.model, folder).chat_template is not None
    return Named(
        id=Path(name).name if name.startswith(("/", "~")) else name,
        model_name=request.model_name,
        adapter_path=request.adapter_path,
        model_type="instruct" if has_template else "base",
    )


def _require_plain(folder: Path) -> None:
    facts = ModelFolder(folder.name, folder, "base", check_model_files(folder)).facts
    if (facts.quantization or "").startswith("mlx"):
        raise UnsupportedModel(
            "vLLM does not read MLX's quantised weights",
            suggestion="Serve the model that it was made of.",
        )


def _adapter_file(source: Source, request: LoadRequest) -> Path:
    assert source.adapter is not None
    if source.adapter.is_dir():
        reason = "is a full model, not an adapter"
    elif settings_beside(source.adapter).dora:
        reason = "is a DoRA adapter, which vLLM does not have"
    else:
        return source.adapter
    raise UnsupportedModel(
        f"{Path(request.adapter_path or '').name} {reason}",
        suggestion="Publish it (forgellm publish) and serve that model.",
    )


def _chat_template(wanted: Wanted) -> Path | None:
    """That which the adapters' conversations were read with, where it is not the model's own."""
    files = [adapter.weights.parent / CHAT_TEMPLATE_NAME for adapter in wanted.adapters]
    found = {file.read_bytes(): file for file in files if file.is_file()}
    if len(found) > 1:
        raise InvalidRequest(
            "These adapters were trained with different chat templates, and vLLM has one for all",
            suggestion="Serve them one by one, or publish them.",
        )
    return next(iter(found.values()), None)


def _generation_config(model: Path, template: Path | None, scratch: Path) -> Path:
    """A folder whose generation_config.json says where answers end, and nothing else: what is asked
    for counts, not the model's own wish."""
    tokenizer = Tokenizer.load(model, template.parent if template else None)
    write_json(scratch / GENERATION_NAME, {"eos_token_id": sorted(stop_ids(tokenizer))})
    return scratch


def _allowed_rank(rank: int) -> int:
    for allowed in _RANKS:
        if rank <= allowed:
            return allowed
    raise UnsupportedModel(
        f"vLLM takes adapters up to rank {_RANKS[-1]}, not {rank}",
        suggestion="Publish the checkpoint and serve that model.",
    )
