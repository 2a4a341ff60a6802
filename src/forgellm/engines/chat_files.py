"""What a model's folder tells other programs of its chats: the template, and where answers end.

transformers, vLLM and mlx_lm stop at the `eos_token_id` of `generation_config.json`, else of
`config.json`. A base model's files name the end of a document there, which is not what its answers
were taught to end with.

`eos_token` in `tokenizer_config.json` stays as it is: it is what ends a document, for us and for
other trainers, and what templates write where they say `eos_token`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forgellm.data.chat.turn_ends import turn_end_ids
from forgellm.data.tokenizer import CHAT_TEMPLATE_NAME, Tokenizer

GENERATION_NAME = "generation_config.json"
_SETTINGS_NAME = "tokenizer_config.json"
_CARRIED = ("bos_token_id", "eos_token_id", "pad_token_id")


def carry_template(template: Path, out: Path) -> None:
    """Make the file `template` the chat template of the model folder `out`, for every reader:
    llama.cpp and older programs look into `tokenizer_config.json`."""
    shutil.copyfile(template, out / CHAT_TEMPLATE_NAME)
    (out / "chat_template.json").unlink(missing_ok=True)
    settings = out / _SETTINGS_NAME
    if settings.is_file():
        values = _read(settings)
        _write(settings, values | {"chat_template": template.read_text("utf-8")})


def name_turn_ends(folder: Path) -> None:
    """Name the tokens that end an answer, by the folder's chat template, in the folder's files.

    What names them already is left as it is, to the byte. Raises UnsupportedModel where the folder
    has no usable tokenizer.
    """
    tokenizer = Tokenizer.load(folder)
    if tokenizer.chat_template is None:
        return
    ids = turn_end_ids(tokenizer)
    if not ids:
        return
    config, generation = folder / "config.json", folder / GENERATION_NAME
    if not generation.is_file():
        values = _read(config)
        _write(generation, {key: values[key] for key in _CARRIED if values.get(key) is not None})
    for file in (config, generation):
        _name_ids(file, list(ids.values()))
    _mark_as_control(folder, ids)


def _name_ids(file: Path, ids: Sequence[int]) -> None:
    """Behind those that the file names, since some programs pad with the first."""
    values = _read(file)
    named = values.get("eos_token_id")
    named = named if isinstance(named, list) else [] if named is None else [named]
    if missing := [number for number in ids if number not in named]:
        found = [*named, *missing]
        _write(file, values | {"eos_token_id": found if len(found) > 1 else found[0]})


def _mark_as_control(folder: Path, ids: Mapping[str, int]) -> None:
    """Mark the tokens as control tokens, which programs neither show nor read from text."""
    file = folder / "tokenizer.json"
    values = _read(file)
    added = {token["id"]: token for token in values.get("added_tokens", [])}
    changed = [index for index in ids.values() if not added.get(index, {}).get("special")]
    for content, index in ids.items():
        plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        added[index] = {
            "id": index,
            "content": content,
            **plain,
            **added.get(index, {}),
            "special": True,
        }
    if changed:
        _write(file, values | {"added_tokens": [added[index] for index in sorted(added)]})
    file = folder / _SETTINGS_NAME
    values = _read(file) if file.is_file() else {}
    listed = values.get("added_tokens_decoder", {})
    if changed := [
        index for index in ids.values() if listed.get(str(index), {}).get("special") is False
    ]:
        for index in changed:
            listed[str(index)]["special"] = True
        _write(file, values)


def _read(file: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return values


def _write(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False), "utf-8")
