"""What of a conversation is learned, token for token, under the templates of real families."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chat_templates import FAMILIES
from forgellm.data.chat import template as template_module
from forgellm.data.chat.layout import LossOn
from forgellm.data.chat.rows import Conversation, RowRefused, conversation_of
from forgellm.data.chat.template import ChatTemplate, TemplateRefused
from forgellm.data.chat.tokens import ChatRuns, Run, chat_tokens
from forgellm.data.tokenizer import Tokenizer
from tiny_tokenizer import TRAINING_TEXT

SYSTEM = {"role": "system", "content": "Be brief."}
Q1, A1 = (
    {"role": "user", "content": "What is it for?"},
    {"role": "assistant", "content": "It grinds."},
)
Q2, A2 = {"role": "user", "content": " And then? "}, {"role": "assistant", "content": "It\nrests."}
MULTI = [SYSTEM, Q1, A1, Q2, A2]

Labelled = list[tuple[str, bool]]
# Every stretch of the conversation with whether it is learned, written by hand.
EXPECTED: dict[str, Labelled] = {
    "chatml": [
        (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is it for?<|im_end|>\n",
            False,
        ),
        ("<|im_start|>assistant\n", False),
        ("It grinds.<|im_end|>", True),
        ("\n<|im_start|>user\n And then? <|im_end|>\n<|im_start|>assistant\n", False),
        ("It\nrests.<|im_end|>", True),
        ("\n", False),
    ],
    "llama3": [
        (
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>",
            False,
        ),
        ("<|start_header_id|>user<|end_header_id|>\n\nWhat is it for?<|eot_id|>", False),
        ("<|start_header_id|>assistant<|end_header_id|>\n\n", False),
        ("It grinds.<|eot_id|>", True),
        ("<|start_header_id|>user<|end_header_id|>\n\nAnd then?<|eot_id|>", False),
        ("<|start_header_id|>assistant<|end_header_id|>\n\n", False),
        ("It\nrests.<|eot_id|>", True),
    ],
    "gemma": [
        ("<bos><start_of_turn>user\nBe brief.\n\nWhat is it for?<end_of_turn>\n", False),
        ("<start_of_turn>model\n", False),
        ("It grinds.<end_of_turn>", True),
        ("\n<start_of_turn>user\nAnd then?<end_of_turn>\n<start_of_turn>model\n", False),
        ("It\nrests.<end_of_turn>", True),
        ("\n", False),
    ],
    "mistral": [
        ("<s>[INST] Be brief.\n\nWhat is it for? [/INST]", False),
        (" It grinds.</s>", True),
        ("[INST]  And then?  [/INST]", False),
        (" It\nrests.</s>", True),
    ],
    "phi": [
        ("<|system|>\nBe brief.<|end|>\n<|user|>\nWhat is it for?<|end|>\n<|assistant|>\n", False),
        ("It grinds.<|end|>", True),
        ("\n<|user|>\n And then? <|end|>\n<|assistant|>\n", False),
        ("It\nrests.<|end|>", True),
        ("\n<|endoftext|>", False),
    ],
    "qwen3": [
        (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is it for?<|im_end|>\n",
            False,
        ),
        ("<|im_start|>assistant\n", False),
        ("It grinds.<|im_end|>", True),
        ("\n<|im_start|>user\n And then? <|im_end|>\n<|im_start|>assistant\n", False),
        ("<think>\n\n</think>\n\nIt\nrests.<|im_end|>", True),
        ("\n", False),
    ],
}


def make_tokenizer(folder: Path, family: str) -> Tokenizer:
    template, controls, (bos, eos) = FAMILIES[family]
    folder.mkdir(parents=True)
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=controls,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator([TRAINING_TEXT], trainer)
    bpe.save(str(folder / "tokenizer.json"))
    config = {"bos_token": bos, "eos_token": eos, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, ChatTemplate]]:
    found = {}
    for family in FAMILIES:
        tokenizer = make_tokenizer(tmp_path_factory.mktemp("families") / family, family)
        found[family] = (tokenizer, ChatTemplate(tokenizer, FAMILIES[family][0]))
    return found


Families = dict[str, tuple[Tokenizer, ChatTemplate]]


def tokens_of(
    tokenizer: Tokenizer, family: str, conversation: Conversation, loss_on: LossOn = "assistant"
) -> tuple[list[int], list[bool]]:
    """Ids and which of them are learned."""
    runs = ChatRuns(tokenizer, FAMILIES[family][0]).runs(conversation, loss_on)
    ((ids, trained),) = chat_tokens([runs], tokenizer)
    return np.frombuffer(ids, "<u4").tolist(), [bool(mark) for mark in trained]


def check(
    families: Families, family: str, turns: list[Any], expected: Labelled, **fields: Any
) -> None:
    tokenizer = families[family][0]
    loss_on: LossOn = fields.pop("loss_on", "assistant")
    conversation = conversation_of({"messages": turns, **fields})
    found = tokens_of(tokenizer, family, conversation, loss_on)
    ids: list[int] = []
    trained: list[bool] = []
    for stretch, is_trained in expected:
        part = tokenizer.encode_template(stretch)
        ids += part
        trained += [is_trained] * len(part)
    shown = [(tokenizer.decode([i], skip_special=False), t) for i, t in zip(*found, strict=True)]
    assert found == (ids, trained), shown


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_alone_are_learned(families: Families, family: str) -> None:
    check(families, family, MULTI, _joined(EXPECTED[family]))


def _joined(labelled: Labelled) -> Labelled:
    """Neighbours with the same label are read together."""
    joined: Labelled = []
    for text, is_trained in labelled:
        if joined and joined[-1][1] == is_trained:
            joined[-1] = (joined[-1][0] + text, is_trained)
        else:
            joined.append((text, is_trained))
    return joined


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_answer_alone_is_learned(families: Families, family: str) -> None:
    labelled = EXPECTED[family]
    answers = [n for n, (_, is_trained) in enumerate(labelled) if is_trained]
    only_last = [(text, n == answers[-1]) for n, (text, _) in enumerate(labelled)]
    check(families, family, MULTI, _joined(only_last), loss_on="last")


@pytest.mark.parametrize("family", FAMILIES)
def test_all_is_learned(families: Families, family: str) -> None:
    check(
        families,
        family,
        MULTI,
        _joined([(text, True) for text, _ in EXPECTED[family]]),
        loss_on="all",
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prompt_of_an_answer_is_what_training_showed_before_it(
    families: Families, family: str
) -> None:
    """The tokens before the last answer are those that chatting sends for the same turns."""
    from forgellm.generation.prompt import build_prompt
    from forgellm.schema.generation import Message

    tokenizer, template = families[family]
    turns = [SYSTEM, Q1, {"role": "assistant", "content": "Yes."}, Q2, A2]
    ids, trained = tokens_of(tokenizer, family, Conversation(turns), "last")
    history = [Message(**turn) for turn in turns[:3]]  # type: ignore[arg-type]
    prompt = build_prompt(tokenizer, Q2["content"], history, is_base_model=False)
    assert ids[: trained.index(True)] == prompt


def test_thoughts_are_learned_where_the_template_shows_them(families: Families) -> None:
    turns = [Q1, {"role": "assistant", "content": "<think>\nA mill grinds.\n</think>\n\nGrain."}]
    expected = [
        ("<|im_start|>user\nWhat is it for?<|im_end|>\n<|im_start|>assistant\n", False),
        ("<think>\nA mill grinds.\n</think>\n\nGrain.<|im_end|>", True),
        ("\n", False),
    ]
    check(families, "qwen3", turns, expected)


def test_tool_calls_are_learned_and_results_are_not(families: Families) -> None:
    call = {"type": "function", "function": {"name": "count", "arguments": '{"of": "sacks"}'}}
    turns = [
        Q1,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "eleven"},
        {"role": "assistant", "content": "Eleven sacks."},
    ]
    tools = [{"type": "function", "function": {"name": "count"}}]
    listed = '{"type": "function", "function": {"name": "count"}}'
    expected = [
        (f"<|im_start|>system\n# Tools\n\n<tools>\n{listed}\n</tools><|im_end|>\n", False),
        ("<|im_start|>user\nWhat is it for?<|im_end|>\n<|im_start|>assistant\n", False),
        (
            '<tool_call>\n{"name": "count", "arguments": {"of": "sacks"}}\n</tool_call><|im_end|>',
            True,
        ),
        ("\n<|im_start|>user\n<tool_response>\neleven\n</tool_response><|im_end|>\n", False),
        ("<|im_start|>assistant\n", False),
        ("<think>\n\n</think>\n\nEleven sacks.<|im_end|>", True),
        ("\n", False),
    ]
    check(families, "qwen3", turns, _joined(expected), tools=tools)


def test_tools_that_spell_control_tokens_are_refused(families: Families) -> None:
    tokenizer, template = families["qwen3"]
    call = {"function": {"name": "x", "arguments": {"of": "<|im_end|>"}}}
    turns = [Q1, {"role": "assistant", "content": "", "tool_calls": [call]}]
    with pytest.raises(RowRefused, match="control token"):
        tokens_of(tokenizer, "qwen3", conversation_of({"messages": turns}))


CONTROLS = sorted({token for _, controls, _ in FAMILIES.values() for token in controls})
HOSTILE = st.lists(
    st.one_of(st.sampled_from(CONTROLS), st.text(max_size=6), st.sampled_from(["\n", "\t", " "])),
    min_size=1,
    max_size=6,
).map("".join)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=800, deadline=None, suppress_health_check=list(HealthCheck))
@given(asked=HOSTILE, answered=HOSTILE)
def test_text_never_becomes_control_tokens(
    families: Families, family: str, asked: str, answered: str
) -> None:
    """The conversation has just the control tokens that its shape gives, whatever is said in it."""
    tokenizer, template = families[family]
    controls = {tokenizer._plain.token_to_id(token) for token in tokenizer.special_tokens}

    def shape(question: str, answer: str) -> list[int]:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        ids, _ = tokens_of(tokenizer, family, Conversation(turns))
        return [number for number in ids if number in controls]

    try:
        assert shape(asked, answered) == shape("a", "b")
    except RowRefused:
        pass  # nothing is learned of it


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(st.lists(HOSTILE, min_size=2, max_size=4), min_size=2, max_size=3))
def test_what_was_read_before_changes_nothing(
    families: Families, family: str, texts: list[list[str]]
) -> None:
    tokenizer = families[family][0]
    reader = ChatRuns(tokenizer, FAMILIES[family][0])
    for said in texts:
        roles = ["user", "assistant"] * 2
        turns = [{"role": r, "content": c} for r, c in zip(roles, said, strict=False)]
        conversation = Conversation(turns)
        afresh = ChatRuns(tokenizer, FAMILIES[family][0])
        assert _found(reader, conversation) == _found(afresh, conversation)


def _found(reader: ChatRuns, conversation: Conversation) -> list[Run] | str:
    try:
        return reader.runs(conversation, "assistant")
    except RowRefused as error:
        return str(error)


def test_a_template_that_names_the_day_is_rendered_each_time(
    families: Families, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = ChatRuns(families["chatml"][0], "{{ strftime_now('%d') }}" + FAMILIES["chatml"][0])
    for day in (1, 2):
        today = datetime(2026, 1, day)
        monkeypatch.setattr(template_module, "datetime", Mock(now=lambda day=today: day))
        assert reader.runs(Conversation([Q1, A1]), "assistant")[0].text.startswith(f"0{day}<")


def test_a_text_that_spells_the_end_of_a_turn_is_learned_whole(families: Families) -> None:
    tokenizer, template = families["chatml"]
    turns = [Q1, {"role": "assistant", "content": "Say <|im_end|> and stop."}]
    found = tokens_of(tokenizer, "chatml", Conversation(turns))
    learned = [i for i, is_trained in zip(*found, strict=True) if is_trained]
    assert tokenizer.decode(learned[:-1]) == "Say <|im_end|> and stop."
    assert learned[-1] in tokenizer.eos_ids


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content * 99999999 }}{% endfor %}",
        "{{ 9 ** 99999999 }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ 'xxxxxxxxxxxxxxxx' }}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{{ messages.__class__.__mro__ }}",
        "{% for m in messages %}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
    ],
)
def test_hostile_templates_are_refused(
    families: Families, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_module, "MAX_SECONDS", 0.3)
    tokenizer, _ = families["chatml"]
    with pytest.raises(TemplateRefused):
        ChatTemplate(tokenizer, source).render([Q1, A1], for_answer=False)
