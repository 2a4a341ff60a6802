"""A model's folder names, for other programs, the tokens that its chat template ends answers with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken

from forgellm.data.tokenizer import Tokenizer
from forgellm.engines.chat_files import carry_template, name_turn_ends
from tiny_tokenizer import CHAT_TEMPLATE, build_tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Its template ends answers with <|im_end|> (2); its files name the end of a document (0)."""
    build_tiny_tokenizer(tmp_path)
    edit(tmp_path / "tokenizer_config.json", eos_token="<|endoftext|>", pad_token=None)
    (tmp_path / "config.json").write_text('{"eos_token_id": 0, "pad_token_id": 7}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 0, "top_p": 0.5}')
    return tmp_path


def edit(file: Path, **changes: Any) -> None:
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("named", "expected"),
    [(0, [0, 2]), ([0, 9], [0, 9, 2]), (None, 2), ([9, 2], [9, 2]), (2, 2)],
)
def test_the_end_of_a_turn_is_named_behind_what_is_named_already(
    folder: Path, named: Any, expected: Any
) -> None:
    for name in ("config", "generation_config"):
        edit(folder / f"{name}.json", eos_token_id=named)
    name_turn_ends(folder)
    assert read(folder, "config") == {"eos_token_id": expected, "pad_token_id": 7}
    assert read(folder, "generation_config") == {"eos_token_id": expected, "top_p": 0.5}
    assert read(folder, "tokenizer_config")["eos_token"] == "<|endoftext|>"


def test_what_names_it_already_stays_to_the_byte(folder: Path) -> None:
    name_turn_ends(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    name_turn_ends(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_missing_generation_settings_are_made_of_the_configuration(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    name_turn_ends(folder)
    assert read(folder, "generation_config") == {"eos_token_id": [0, 2], "pad_token_id": 7}


def test_a_model_without_chat_template_is_left_alone(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", chat_template=None)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    name_turn_ends(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("is_listed", [True, False])
def test_the_end_becomes_a_control_token(folder: Path, is_listed: bool) -> None:
    file = folder / "tokenizer.json"
    values = read(folder, "tokenizer")
    if is_listed:
        values["added_tokens"][2]["special"] = False
    else:  # only the configuration knows it as one
        del values["added_tokens"][2]
        edit(folder / "tokenizer_config.json", pad_token="<|im_end|>")
    file.write_text(json.dumps(values))
    listed = {"2": {"content": "<|im_end|>", "special": False}}
    edit(folder / "tokenizer_config.json", added_tokens_decoder=listed)
    text = "a<|im_end|>\n b"
    before = Tokenizer.load(folder).encode_template(text)
    name_turn_ends(folder)
    found = tokenizers.Tokenizer.from_file(str(file))
    assert found.get_added_tokens_decoder()[2].special
    assert found.decode([2]) == "" and found.get_vocab_size() == 400
    assert read(folder, "tokenizer_config")["added_tokens_decoder"]["2"]["special"] is True
    assert Tokenizer.load(folder).encode_template(text) == before


def test_a_run_s_template_is_that_of_every_reader(folder: Path, tmp_path: Path) -> None:
    end = AddedToken("<|over|>", special=True, normalized=False)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([end])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.json").write_text('{"chat_template": "another"}')
    template = CHAT_TEMPLATE.replace("<|im_end|>", "<|over|>")
    run = tmp_path / "run"
    run.mkdir()
    (run / "chat_template.jinja").write_text(template)
    carry_template(run / "chat_template.jinja", folder)
    name_turn_ends(folder)
    assert (folder / "chat_template.jinja").read_text() == template
    assert read(folder, "tokenizer_config")["chat_template"] == template
    assert not (folder / "chat_template.json").exists()
    assert read(folder, "generation_config")["eos_token_id"] == [0, 400]
