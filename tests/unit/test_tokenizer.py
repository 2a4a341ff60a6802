import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from forgellm.data.long_text import split_text
from forgellm.data.tokenizer import Tokenizer
from forgellm.errors import UnsupportedModel
from tiny_tokenizer import TRAINING_TEXT, build_tiny_tokenizer

ODD_TEXT = " \t lead\r\n\r\n\n  def f(x):\n\treturn x  # ❄️👩‍👩‍👧 ünï\u00a0\u200bcode\x00\r end \n\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


def edit(folder: Path, tmp_path: Path, **changes: object) -> Path:
    """A copy of the tokenizer with values of tokenizer_config.json changed."""
    for source in folder.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text()) | changes
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def encode_batch(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [np.frombuffer(ids, "<u4").tolist() for ids in tokenizer.encode_batch(texts)]


@given(st.text(st.characters(codec="utf-8")))
def test_decode_gives_back_the_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_odd_text_survives(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode(ODD_TEXT)) == ODD_TEXT
    assert encode_batch(tokenizer, [ODD_TEXT, "b"]) == [
        tokenizer.encode(ODD_TEXT),
        tokenizer.encode("b"),
    ]


def test_control_strings_in_text_stay_characters(tokenizer: Tokenizer) -> None:
    text = "a<|im_end|>b<|endoftext|>"
    assert not {0, 1, 2} & set(tokenizer.encode(text))
    assert not {0, 1, 2} & set(encode_batch(tokenizer, [text])[0])
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_control_strings_in_a_template_become_tokens(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_template("<|im_start|>user\nhi<|im_end|>\n")
    assert ids[0] == 1 and ids.count(2) == 1
    assert tokenizer.decode(ids) == "user\nhi\n"
    assert tokenizer.decode(ids, skip_special=False) == "<|im_start|>user\nhi<|im_end|>\n"
    # One use must not change the other.
    assert tokenizer.encode("<|im_end|>") != [2]


def test_roles_of_control_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.special_tokens == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    assert tokenizer.document_end_id == 0
    assert tokenizer.eos_ids == {0, 2}
    assert tokenizer.bos_token == "<|im_start|>"
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.vocab_size == 400


def test_bos_only_named_is_not_added(tokenizer: Tokenizer) -> None:
    assert tokenizer.bos_id is None


def test_bos_of_the_post_processor_is_found(folder: Path, tmp_path: Path) -> None:
    copy = edit(folder, tmp_path)
    raw = tokenizers.Tokenizer.from_file(str(copy / "tokenizer.json"))
    raw.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    raw.save(str(copy / "tokenizer.json"))
    tokenizer = Tokenizer.load(copy)
    assert tokenizer.bos_id == 1
    assert 1 not in tokenizer.encode("a")


def test_add_bos_token_is_honoured(folder: Path, tmp_path: Path) -> None:
    assert Tokenizer.load(edit(folder, tmp_path, add_bos_token=True)).bos_id == 1


def test_document_end_falls_back_to_eos(folder: Path, tmp_path: Path) -> None:
    copy = edit(folder, tmp_path)
    text = (copy / "tokenizer.json").read_text().replace("<|endoftext|>", "<|other|>")
    (copy / "tokenizer.json").write_text(text)
    assert Tokenizer.load(copy).document_end_id == 2


def test_tokens_named_in_the_configuration_are_control_tokens(folder: Path, tmp_path: Path) -> None:
    copy = edit(folder, tmp_path, eos_token={"content": "<|im_end|>"}, unknown="<|new|>")
    raw = json.loads((copy / "tokenizer.json").read_text())
    raw["added_tokens"][2]["special"] = False
    (copy / "tokenizer.json").write_text(json.dumps(raw))
    (copy / "generation_config.json").write_text('{"eos_token_id": [0, 7]}')
    tokenizer = Tokenizer.load(copy)
    assert 2 not in tokenizer.encode("a<|im_end|>") and tokenizer.vocab_size == 400
    assert tokenizer.encode_template("<|im_end|>") == [2]
    assert tokenizer.eos_ids == {0, 2, 7}


def test_truncation_left_in_the_file_is_ignored(folder: Path, tmp_path: Path) -> None:
    copy = edit(folder, tmp_path)
    raw = tokenizers.Tokenizer.from_file(str(copy / "tokenizer.json"))
    raw.enable_truncation(4)
    raw.enable_padding(length=8)
    raw.save(str(copy / "tokenizer.json"))
    tokenizer = Tokenizer.load(copy)
    assert tokenizer.decode(tokenizer.encode(TRAINING_TEXT)) == TRAINING_TEXT


def test_chat_template_file_comes_first(folder: Path, tmp_path: Path) -> None:
    copy = edit(folder, tmp_path)
    assert "im_start" in (Tokenizer.load(copy).chat_template or "")
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert Tokenizer.load(copy).chat_template == "{{ messages }}"


def test_default_of_several_chat_templates_is_taken(folder: Path, tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert Tokenizer.load(edit(folder, tmp_path, chat_template=named)).chat_template == "d"


def test_fingerprint_follows_what_decides_ids(folder: Path, tmp_path: Path) -> None:
    original = Tokenizer.load(folder).fingerprint
    other_template = edit(folder, tmp_path, chat_template="x")
    assert Tokenizer.load(other_template).fingerprint == original
    assert Tokenizer.load(edit(folder, tmp_path, add_bos_token=True)).fingerprint != original


def test_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        Tokenizer.load(tmp_path)
    assert "tokenizer.json" in caught.value.message and caught.value.suggestion


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b'{"model": 3}'),
        ("tokenizer.json", b"\xff\xfe\x00"),
        ("tokenizer_config.json", b"[1]"),
        ("tokenizer_config.json", b"{nope"),
        ("generation_config.json", b"\xff"),
    ],
)
def test_malformed_file_is_refused_by_name(
    folder: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    copy = edit(folder, tmp_path)
    (copy / name).write_bytes(content)
    with pytest.raises(UnsupportedModel, match=name) as caught:
        Tokenizer.load(copy)
    assert str(tmp_path) not in json.dumps(caught.value.to_dict())


@given(
    st.lists(st.sampled_from([*"ab .\n\t1é語🙂", " the", "  ", "\r\n", " mill", "n't"])),
    st.integers(1, 20),
)
def test_pieces_of_a_long_text_have_the_same_tokens(
    tokenizer: Tokenizer, parts: list[str], limit: int
) -> None:
    text = "".join(parts)
    pieces = list(split_text(text, limit, tokenizer.encode))
    assert "".join(pieces) == text
    assert sum(encode_batch(tokenizer, pieces), []) == tokenizer.encode(text)


def test_long_text_is_really_cut(tokenizer: Tokenizer) -> None:
    pieces = list(split_text(TRAINING_TEXT * 4, 500, tokenizer.encode))
    assert len(pieces) > 10 and max(map(len, pieces)) < 600


def test_tokenizer_that_marks_text_starts_is_never_cut(tokenizer: Tokenizer) -> None:
    def encode_marked(text: str) -> list[int]:
        return [0, *tokenizer.encode(text)]

    assert list(split_text(TRAINING_TEXT, 100, encode_marked)) == [TRAINING_TEXT]
