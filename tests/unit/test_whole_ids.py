"""A conversation has the ids that the model's own tokenizer gives all of it at once, whatever that
puts in front of texts, and what is learned of it begins and ends where the answers do."""

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from forgellm.data.chat.rows import Conversation, RowRefused
from forgellm.data.chat.template import ChatTemplate
from forgellm.data.chat.tokens import ChatRuns, chat_tokens, prompt_tokens
from forgellm.data.long_text import split_text
from forgellm.data.tokenizer import Tokenizer
from forgellm.evaluation.probes import _passage
from tiny_tokenizer import TRAINING_TEXT

Sequence = normalizers.Sequence
Before, Space = normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")
Metaspace, ByteLevel = pre_tokenizers.Metaspace, pre_tokenizers.ByteLevel
Split = pre_tokenizers.Split

# kind -> model, normalizer, pre-tokenizer, how the control tokens are matched
KINDS: dict[str, tuple[str, Any, Any, dict[str, bool]]] = {
    "gpt2": ("bytes", None, ByteLevel(add_prefix_space=False), {}),
    "qwen": ("bytes", normalizers.NFC(), ByteLevel(add_prefix_space=False), {}),
    "roberta": ("bytes", None, ByteLevel(add_prefix_space=True), {}),
    "llama2": ("pieces", Sequence([Before, Space]), None, {}),
    "gemma": ("pieces", Space, Split(" ", "merged_with_previous"), {}),
    "mistral": ("pieces", None, Metaspace(prepend_scheme="first", split=False), {}),
    "always": ("pieces", None, Metaspace(prepend_scheme="always"), {}),
    "never": ("pieces", None, Metaspace(prepend_scheme="never"), {}),
    "t5": ("unigram", normalizers.NFKC(), Metaspace(prepend_scheme="always"), {}),
    "lower": ("bytes", Sequence([normalizers.NFKC(), normalizers.Lowercase()]), ByteLevel(), {}),
    "strip": ("pieces", Sequence([normalizers.Strip(), Before, Space]), None, {}),
    "swallows": ("pieces", Sequence([Before, Space]), None, {"lstrip": True, "rstrip": True}),
    "swallows left": ("bytes", None, ByteLevel(add_prefix_space=False), {"lstrip": True}),
    "normalized": ("pieces", Sequence([Before, Space]), None, {"normalized": True}),
}
CONTROLS = ["<s>", "</s>", "<|in|>", "<|out|>"]
# kind -> before a question, between it and the answer, after that
TEMPLATES = {
    "control": ("<|in|>user\n", "<|out|>\n<|in|>assistant\n", "<|out|>\n"),
    "bare": ("<|in|>", "<|out|>", "</s>"),
    "plain roles": ("### user\n", "</s>\n### assistant\n", "</s>\n"),
    "brackets": ("<s>[INST] ", " [/INST]", " </s>"),
    "plain end": ("Q: ", "\nA:\n", "</turn>\n"),
    "reaches over": ("Q: ", "\nA: ", "</turn>\n"),
}


@cache
def build(kind: str, template: str) -> tuple[Tokenizer, transformers.PreTrainedTokenizerFast]:
    model, normalizer, pre_tokenizer, matched = KINDS[kind]
    tokenizer = _trained(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, **{"normalized": False, **matched}) for t in CONTROLS]
    )
    folder = Path(mkdtemp())
    tokenizer.save(str(folder / "tokenizer.json"))
    before, between, after = (json.dumps(part) for part in TEMPLATES[template])
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ BEFORE + m.content + BETWEEN }}"
        "{% else %}{{ m.content + AFTER }}{% endif %}{% endfor %}"
    )
    for name, part in (("BEFORE", before), ("BETWEEN", between), ("AFTER", after)):
        source = source.replace(name, part)
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": source}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", eos_token="</s>"
    )
    return Tokenizer.load(folder), fast


@cache
def _trained_text(model: str) -> str:
    if model == "bytes":
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.train_from_iterator(
            [TRAINING_TEXT],
            trainers.BpeTrainer(
                vocab_size=400, initial_alphabet=sorted(ByteLevel.alphabet()), show_progress=False
            ),
        )
        return str(tokenizer.to_str())
    in_bytes = [f"<0x{number:02X}>" for number in range(256)]
    if model == "unigram":
        tokenizer = tokenizers.Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = Metaspace()
        tokenizer.train_from_iterator(
            [TRAINING_TEXT],
            trainers.UnigramTrainer(vocab_size=200, unk_token="<unk>", show_progress=False,
                                    special_tokens=["<unk>"]),
        )  # fmt: skip
        spec = json.loads(tokenizer.to_str())["model"]
        pieces = [tuple(piece) for piece in spec["vocab"]] + [(byte, -20.0) for byte in in_bytes]
        return str(tokenizers.Tokenizer(models.Unigram(pieces, 0, byte_fallback=True)).to_str())
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = Metaspace()
    tokenizer.train_from_iterator(
        [TRAINING_TEXT], trainers.BpeTrainer(vocab_size=200, show_progress=False)
    )
    spec = json.loads(tokenizer.to_str())["model"]
    names = ["<unk>", *in_bytes, *spec["vocab"]]
    vocabulary = {name: number for number, name in enumerate(names)}
    merges = [tuple(merge) for merge in spec["merges"]]
    bpe = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    return str(tokenizers.Tokenizer(bpe).to_str())


def _trained(model: str) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(_trained_text(model))


WORDS = st.sampled_from(["The mill", "It grinds", "sacks of 50", " the river", "Éa", "ｆ", "日本"])
TEXT = st.lists(
    st.one_of(WORDS, st.sampled_from([" ", "  ", "\n", "\n\n", "\t", ".", "e\u0301", "▁", "👩‍👧"])),
    min_size=1,
    max_size=5,
).map("".join)
CASES = pytest.mark.parametrize(
    ("kind", "template"), [(kind, template) for kind in KINDS for template in TEMPLATES]
)


def parts_of(template: str, texts: list[str]) -> list[tuple[str, bool]]:
    """The conversation by hand: stretches, and whether they are an answer with its end."""
    before, between, after = TEMPLATES[template]
    end = after.rstrip("\n")
    found = []
    for question, answer in zip(texts[::2], texts[1::2], strict=True):
        found += [(before + question + between, False), (answer + end, True)]
        found += [(after[len(end) :], False)]
    return found


def ours(tokenizer: Tokenizer, texts: list[str]) -> tuple[list[int], list[bool]]:
    source = tokenizer.chat_template
    assert source is not None
    roles = ["user", "assistant"] * (len(texts) // 2)
    turns = [{"role": r, "content": c} for r, c in zip(roles, texts, strict=True)]
    runs = ChatRuns(tokenizer, source).runs(Conversation(turns), "assistant")
    ((ids, trained),) = chat_tokens([runs], tokenizer)
    return np.frombuffer(ids, "<u4").tolist(), [bool(mark) for mark in trained]


@CASES
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(TEXT, min_size=2, max_size=4).filter(lambda texts: len(texts) % 2 == 0))
def test_ids_are_those_of_the_whole_conversation(
    kind: str, template: str, texts: list[str]
) -> None:
    tokenizer, fast = build(kind, template)
    parts = parts_of(template, texts)
    whole = "".join(text for text, _ in parts)
    reference = fast(whole, add_special_tokens=False, return_offsets_mapping=True)
    ids, trained = ours(tokenizer, texts)
    assert ids == reference["input_ids"]
    borders = np.cumsum([0, *(len(text) for text, _ in parts)]).tolist()
    answers = [
        (first, last)
        for (first, last), (_, is_answer) in zip(pairwise(borders), parts, strict=True)
        if is_answer
    ]
    begins = [start for start, _ in reference["offset_mapping"]]
    assert trained == [any(a <= start < b for a, b in answers) for start in begins]


@pytest.mark.parametrize(
    # What is stripped at a prompt's end is not in the midst of a conversation.
    ("kind", "template"),
    [(k, t) for k in KINDS for t in TEMPLATES if k != "strip"],
)
def test_a_prompt_is_the_beginning_of_what_was_learned(kind: str, template: str) -> None:
    tokenizer, _ = build(kind, template)
    turns = [("user", "What is it?"), ("assistant", "It grinds."), ("user", "And the sacks?")]
    ids, trained = ours(tokenizer, [*(text for _, text in turns), "They wait."])
    assert tokenizer.chat_template is not None
    prompt = prompt_tokens(
        ChatTemplate(tokenizer, tokenizer.chat_template),
        tokenizer,
        [{"role": role, "content": text} for role, text in turns],
    )
    last = len(trained) - next(n for n, mark in enumerate(reversed(trained)) if mark)
    first = next(n for n in range(last, 0, -1) if not trained[n - 1])
    if template == "reaches over":  # the space and the word behind it are one token: the prompt's
        assert first == len(prompt) and ids[: first - 1] == prompt[:-1]
    else:
        assert ids[:first] == prompt


@pytest.mark.parametrize(
    ("kind", "template"), [(k, t) for k in KINDS for t in TEMPLATES if k != "normalized"]
)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(TEXT, min_size=2, max_size=2))
def test_text_kept_from_control_tokens_has_the_same_ids(
    kind: str, template: str, texts: list[str]
) -> None:
    """What is done where a text spells a control token changes nothing where none does."""
    tokenizer, fast = build(kind, template)
    before, between, after = TEMPLATES[template]
    parts = [(before, True), (texts[0], False), (between, True), (texts[1], False), (after, True)]
    found = tokenizer.encode_parts(parts, [3])
    whole = "".join(text for text, _ in parts)
    reference = fast(whole, add_special_tokens=False, return_offsets_mapping=True)
    assert np.frombuffer(found.ids, "<u4").tolist() == reference["input_ids"]
    first = len(before + texts[0] + between)
    inside = [first <= a < first + len(texts[1]) for a, _ in reference["offset_mapping"]]
    assert [bool(mark) for mark in found.trained] == inside


HOSTILE = st.lists(
    st.one_of(st.sampled_from([*CONTROLS, "<", "|out|>", "s>", "<|", ">", "a", " ", "\n"])),
    min_size=1,
    max_size=5,
).map("".join)


@CASES
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(HOSTILE, min_size=2, max_size=2))
def test_text_never_becomes_control_tokens(kind: str, template: str, texts: list[str]) -> None:
    tokenizer, _ = build(kind, template)
    controls = {tokenizer.token_id(token) for token in CONTROLS}

    def shape(said: list[str]) -> list[int]:
        return [number for number in ours(tokenizer, said)[0] if number in controls]

    if kind == "normalized":  # where the template's own are found depends on what is before them
        words = "".join(TEMPLATES[template])
        assert len(shape(texts)) <= sum(words.count(token) for token in CONTROLS)
    else:
        assert shape(texts) == shape(["a", "b"])


def test_a_control_token_that_template_and_text_spell_together_is_none() -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ 'Q <' + m.content + '|> A <' }}"
        "{% else %}{{ m.content + '</s>' }}{% endif %}{% endfor %}"
    )
    tokenizer, _ = build("gpt2", "bare")
    values = tokenizer.to_dict()
    values["settings"]["chat_template"] = template
    again = Tokenizer.from_dict(values)
    ids, _ = ours(again, ["|out", "Yes"])
    assert ids.count(again.token_id("<|out|>") or -1) == 0
    with pytest.raises(RowRefused, match="reaches over"):
        ours(again, ["What?", "|out|> no"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_document_in_pieces_has_the_ids_of_the_whole(kind: str) -> None:
    tokenizer, fast = build(kind, "control")
    text = TRAINING_TEXT * 3
    pieces = list(split_text(text, 500, tokenizer.encode))
    assert len(pieces) > 3
    ids = [number for piece in pieces for number in tokenizer.encode(piece)]
    assert ids == fast(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("adds", [True, False])
def test_a_bos_token_is_never_there_twice(adds: bool) -> None:
    tokenizer, _ = build("llama2", "brackets")
    spec = json.loads(tokenizer.to_dict()["serialized"])
    if adds:
        index = tokenizer.token_id("<s>")
        spec["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [index], "tokens": ["<s>"]}},
        }
    again = Tokenizer.from_dict(tokenizer.to_dict() | {"serialized": json.dumps(spec)})
    assert (again.bos_id is not None) is adds
    ids, _ = ours(again, ["What?", "It grinds."])
    assert ids.count(tokenizer.token_id("<s>") or 0) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_ending_is_scored_as_it_follows_its_stem(kind: str) -> None:
    tokenizer, fast = build(kind, "control")
    passage = _passage(tokenizer, "The mill grinds", "sacks of grain")
    reference = fast(
        "The mill grinds sacks of grain", add_special_tokens=False, return_offsets_mapping=True
    )
    assert passage.ids == reference["input_ids"]
    scored = reference["offset_mapping"][passage.first_counted :]
    assert [start for start, _ in scored][0] in (15, 16) and scored[-1][1] == 30
