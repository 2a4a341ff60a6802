"""Turns a GGUF file into a model folder in Hugging Face layout: `forgellm models import`."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forgellm.catalog.gguf_config import build_config, read_architecture
from forgellm.catalog.gguf_file import GgufFile, damaged
from forgellm.catalog.gguf_tokenizer import TURN_END_KEYS, TURN_END_TOKENS, build_tokenizer
from forgellm.catalog.gguf_weights import Dtype, plan_tensors, total_bytes, write_weights
from forgellm.catalog.licence import LICENCE
from forgellm.errors import Conflict, DiskTooSmall, InvalidRequest, PathNotFound
from forgellm.paths import RUN_NAME, Workspace

_STORED_AS = re.compile(r"[.-](I?Q\d\w*|BF16|F16|F32|MXFP4\w*)$", re.IGNORECASE)

OnProgress = Callable[[int, int], None]


def import_gguf(
    file: Path,
    workspace: Workspace,
    name: str | None = None,
    on_progress: OnProgress | None = None,
    *,
    dtype: Dtype = "bfloat16",
) -> Path:
    """Write `models/base/<name>/` from `file` and return that folder.

    `on_progress` is called with the bytes written so far and their final number. Raises
    UnsupportedModel for files that are malformed or of another architecture, Conflict if the
    name is taken, DiskTooSmall.
    """
    if not file.is_file():
        raise PathNotFound(
            f"There is no file {file.name}", suggestion="Give the path of a .gguf file."
        )
    target = workspace.base_models / _model_name(file, name)
    if target.exists():
        raise Conflict(
            f"A model named {target.name} exists already",
            suggestion="Choose another with --name, or remove it: "
            f"forgellm models remove base/{target.name}",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".import-", dir=target.parent))
    try:
        write_folder(file, draft, dtype, on_progress or (lambda done, total: None))
        draft.chmod(0o755)  # mkdtemp's folders are closed to others
        draft.rename(target)
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        raise damaged("its numbers do not fit together") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _disk_too_small(target) from error
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _model_name(file: Path, name: str | None) -> str:
    if name is None:
        name = re.sub(r"[^A-Za-z0-9._+-]+", "_", _STORED_AS.sub("", file.stem)).lstrip("._+-")
    if not RUN_NAME.fullmatch(name):
        raise InvalidRequest(
            f"{name!r} cannot be the name of a model",
            suggestion="Give --name with letters, digits, dots, dashes and underscores.",
        )
    return name


def write_folder(file: Path, folder: Path, dtype: Dtype, on_progress: OnProgress) -> None:
    """Write a whole model folder, as `import_gguf` does, into one that is there."""
    source = GgufFile(file)
    architecture = read_architecture(source)
    config = build_config(source, architecture, dtype)
    planned = plan_tensors(source, architecture, config)
    tokenizer, tokenizer_config = build_tokenizer(source.metadata)
    if tokenizer.get_vocab_size() > config["vocab_size"]:
        raise damaged("its vocabulary is larger than its embedding")
    total = total_bytes(planned, dtype)
    if shutil.disk_usage(folder).free < total:
        raise _disk_too_small(folder.parent, total)

    stop_ids = _stop_ids(source.metadata, tokenizer.get_vocab())
    generation = {key: value for key, value in config.items() if key.endswith("_token_id")}
    if stop_ids:
        generation["eos_token_id"] = stop_ids if len(stop_ids) > 1 else stop_ids[0]
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", generation)
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_card(folder, source.metadata)

    done = 0

    def count(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        on_progress(done, total)

    write_weights(source, planned, folder, dtype, count)


def _write_card(folder: Path, metadata: dict[str, Any]) -> None:
    """What the file says of its licence, where the hub's model cards say it."""
    licence = metadata.get("general.license")
    if isinstance(licence, str) and LICENCE.fullmatch(licence):
        text = f"---\nlicense: {licence}\n---\n\nImported from GGUF.\n"
        (folder / "README.md").write_text(text, encoding="utf-8")


def _stop_ids(metadata: dict[str, Any], vocabulary: dict[str, int]) -> list[int]:
    """EOS first, then the ids that end a turn."""
    ids = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", *TURN_END_KEYS)]
    ids += [vocabulary.get(token) for token in TURN_END_TOKENS]
    return list(dict.fromkeys(token_id for token_id in ids if type(token_id) is int))


def _disk_too_small(folder: Path, needed_bytes: int | None = None) -> DiskTooSmall:
    needs = f": it needs {needed_bytes / 1e9:.1f} GB" if needed_bytes else ""
    return DiskTooSmall(
        f"The disk is too full for the model{needs}", suggestion="Free disk space and try again."
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
