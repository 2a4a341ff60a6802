"""What is checked about a model folder before any library opens it.

A configuration can name code to run (`auto_map`) or a kernel to fetch (`_attn_implementation`),
and pickled weights are code. `trust_remote_code=False` alone has been walked around before, so
such files never reach a library here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from forgellm.catalog.safetensors_header import read_header
from forgellm.catalog.whole import require_fit
from forgellm.errors import UnsupportedModel

MAX_CONFIG_BYTES = 1_000_000
MAX_TOKENIZER_CONFIG_BYTES = 16_000_000
MAX_INDEX_BYTES = 64_000_000

_REFUSED_KEYS = frozenset({
    "auto_map", "trust_remote_code", "remote_code", "custom_pipelines", "custom_generate",
    "_attn_implementation", "_attn_implementation_internal", "attn_implementation",
    "_experts_implementation", "_experts_implementation_internal", "experts_implementation",
    "use_kernels", "kernel_config",
})  # fmt: skip
_PICKLED = frozenset({".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack", ".npz"})
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
INDEX = "model.safetensors.index.json"


def check_model_files(folder: Path) -> dict[str, Any]:
    """The folder's parsed `config.json`, once all of its files are found safe to open and to belong
    together.

    Raises UnsupportedModel.
    """
    config = read_json(folder / "config.json", MAX_CONFIG_BYTES)
    _refuse_code(config, "config.json")
    for name in ("tokenizer_config.json", "generation_config.json"):
        if (folder / name).is_file():
            _refuse_code(read_json(folder / name, MAX_TOKENIZER_CONFIG_BYTES), name)
    files = weight_files(folder)
    if not files:
        raise UnsupportedModel(
            "The model has no safetensors weights"
            + ("; pickled weights are not opened, as they can run code" * _has_pickle(folder)),
            suggestion="Use a model published with .safetensors files, or import a GGUF with: "
            "forgellm models import FILE.gguf",
        )
    tensors = {name: info for file in files for name, info in read_header(file).items()}
    require_fit(folder, config, tensors)
    return config


def read_json(path: Path, max_bytes: int) -> dict[str, Any]:
    """A JSON object of bounded size. Raises UnsupportedModel."""
    try:
        if path.stat().st_size > max_bytes:
            raise UnsupportedModel(f"{path.name} is larger than {max_bytes // 1_000_000} MB")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UnsupportedModel(f"{path.name} cannot be read as JSON") from error
    if not isinstance(content, dict):
        raise UnsupportedModel(f"{path.name} does not hold a JSON object")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model, present or not (an index may list more)."""
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX, MAX_INDEX_BYTES).get("weight_map")
        names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
        if not names or not all(isinstance(n, str) and _FILE_NAME.fullmatch(n) for n in names):
            raise UnsupportedModel(f"{INDEX} does not name weight files")
        return [folder / name for name in sorted(names)]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    return sorted(path for path in folder.glob("*.safetensors") if "adapter" not in path.name)


def missing_files(folder: Path) -> list[str]:
    """What an interrupted download has left out; empty for a folder that can be opened or refused."""
    if not (folder / "config.json").is_file():
        return ["config.json"]
    files = weight_files(folder)
    if not files and not _has_pickle(folder):
        return ["model.safetensors"]
    return [file.name for file in files if not file.is_file()]


def _has_pickle(folder: Path) -> bool:
    return any(path.suffix in _PICKLED for path in folder.iterdir())


def _refuse_code(content: Any, file_name: str) -> None:
    pending = [content]
    while pending:
        item = pending.pop()
        if isinstance(item, list):
            pending.extend(item)
        elif isinstance(item, dict):
            # A key set to null or false asks for nothing; published configurations carry such.
            if found := sorted(key for key in _REFUSED_KEYS & item.keys() if item[key]):
                raise UnsupportedModel(
                    f"{file_name} asks for code from outside the model: {', '.join(found)}",
                    suggestion="Use a model that the installed libraries support by themselves.",
                    details={"file": file_name, "keys": found},
                )
            pending.extend(item.values())
