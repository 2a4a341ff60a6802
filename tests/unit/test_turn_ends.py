"""The tokens that end an answer are those that the template writes, whatever their names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken

from chat_templates import FAMILIES
from forgellm.data.chat.format import chat_format
from forgellm.data.chat.preview import preview_conversations
from forgellm.data.chat.rows import conversation_of
from forgellm.data.chat.tokens import ChatRuns, chat_tokens
from forgellm.data.chat.turn_ends import stop_ids, stop_texts, stop_tokens, turn_ends
from forgellm.data.prepare import prepare_data
from forgellm.data.tokenizer import Tokenizer
from forgellm.generation.prompt import stops_of
from forgellm.paths import Workspace
from tiny_tokenizer import TRAINING_TEXT
from tiny_workspace import tiny_recipe, write_conversations

LOOP = "{% for m in messages %}{{ START + m.role + '\n' + m.content + END }}{% endfor %}"
ASK = "{% if add_generation_prompt %}{{ START + 'assistant\n' }}{% endif %}"
# OpenAI's harmony, in short: an earlier answer ends as a thought does, the last one otherwise.
HARMONY = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if m.reasoning_content %}{{ '<|start|>assistant<|channel|>analysis<|message|>' "
    "+ m.reasoning_content + '<|end|>' }}{% endif %}"
    "{% if m.tool_calls %}{{ '<|start|>assistant to=' + m.tool_calls[0].function.name "
    "+ '<|message|>' + (m.tool_calls[0].function.arguments | tojson) + '<|call|>' }}"
    "{% else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content "
    "+ ('<|return|>' if loop.last and not add_generation_prompt else '<|end|>') }}{% endif %}"
    "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
# GLM's: only the role of the next turn ends one.
NEXT_ROLE = (
    "{% for m in messages %}{{ '<|' + ('observation' if m.role == 'tool' else m.role) + '|>\n' "
    "+ (m.tool_calls | tojson if m.tool_calls else m.content) }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# Cohere's: two closing tokens, one after the other.
TWO_CLOSING = (
    "{% for m in messages %}{{ '<|turn|><|' + m.role + '|>' }}"
    "{% if m.role == 'assistant' %}{{ '<|said|>' + m.content + '<|unsaid|>' }}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|over|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn|><|assistant|>' }}{% endif %}"
)
ALWAYS_ASKS = LOOP.replace("START", "'<|in|>'").replace("END", "'<|out|>\n'") + "<|in|>assistant\n"


def chatml_with(start: str, end: str) -> str:
    return (LOOP + ASK).replace("START", repr(start)).replace("END", repr(end))


def build(folder: Path, template: str | None, controls: list[str | AddedToken]) -> Tokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator([TRAINING_TEXT], trainer)
    for token in controls:
        if isinstance(token, str):
            bpe.add_special_tokens([token])
        else:
            bpe.add_tokens([token])
    bpe.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|endoftext|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.load(folder)


HARMONY_TOKENS = ["<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<|call|>"]
ROLES = ["<|user|>", "<|assistant|>", "<|system|>", "<|observation|>"]
ENDS = {
    "own end": (chatml_with("<|in|>", "<|out|>\n"), ["<|in|>", "<|out|>"], ("<|out|>",)),
    "end after a line": (chatml_with("<|in|>", "\n<|out|>\n"), ["<|in|>", "<|out|>"], ("<|out|>",)),
    "no name of an end": (chatml_with("<s0>", "<file_sep>"), ["<s0>", "<file_sep>"], ("<file_sep>",)),
    "end of text": (chatml_with("", "<|endoftext|>\n"), [], ("<|endoftext|>",)),
    "harmony": (HARMONY, HARMONY_TOKENS, ("<|return|>", "<|call|>")),
    "next role": (NEXT_ROLE, ROLES, ("<|user|>", "<|observation|>")),
    "two closing": (TWO_CLOSING, ["<|turn|>", "<|said|>", "<|unsaid|>", "<|over|>"], ("<|over|>",)),
    "always asks": (ALWAYS_ASKS, ["<|in|>", "<|out|>"], ("<|out|>",)),
}  # fmt: skip


@pytest.mark.parametrize("kind", ENDS)
def test_the_tokens_that_a_template_ends_answers_with_are_found(kind: str, tmp_path: Path) -> None:
    template, controls, expected = ENDS[kind]
    tokenizer = build(tmp_path, template, list(controls))
    assert turn_ends(tokenizer, template).tokens == expected
    assert stop_tokens(tokenizer) == {"<|endoftext|>", *expected}
    assert {tokenizer.token_id(token) for token in stop_tokens(tokenizer)} == stop_ids(tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_families_end_as_their_makers_say(family: str, tmp_path: Path) -> None:
    template, controls, _ = FAMILIES[family]
    ends = turn_ends(build(tmp_path, template, list(controls)), template)
    named = {"llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "phi": "<|end|>"}
    # This tokenizer's own end of text stands in for Mistral's.
    default = "<|endoftext|>" if family == "mistral" else "<|im_end|>"
    assert ends.tokens == (named.get(family, default),) and not ends.warnings


def learned(tokenizer: Tokenizer, template: str, turns: list[dict[str, str]]) -> str:
    """The learned tokens of a conversation, as text."""
    runs = ChatRuns(tokenizer, template).runs(conversation_of({"messages": turns}), "assistant")
    ((ids, trained),) = chat_tokens([runs], tokenizer)
    found = [int.from_bytes(ids[4 * n : 4 * n + 4], "little") for n, t in enumerate(trained) if t]
    return tokenizer.decode(found, skip_special=False)


TWICE = [
    {"role": "user", "content": "What is it for?"},
    {"role": "assistant", "content": "It grinds."},
    {"role": "user", "content": "And then?"},
    {"role": "assistant", "content": "It rests."},
]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("own end", "It grinds.<|out|>It rests.<|out|>"),
        ("end after a line", "It grinds.\n<|out|>It rests.\n<|out|>"),
        ("next role", "It grinds.<|user|>It rests."),
        (
            "two closing",
            "<|said|>It grinds.<|unsaid|><|over|><|said|>It rests.<|unsaid|><|over|>",
        ),
        # An earlier answer's <|end|> is no end where answers stop, so it teaches none.
        (
            "harmony",
            "<|channel|>final<|message|>It grinds.<|channel|>final<|message|>It rests.<|return|>",
        ),
    ],
)
def test_an_answer_is_learned_to_its_end(kind: str, expected: str, tmp_path: Path) -> None:
    template, controls, _ = ENDS[kind]
    assert learned(build(tmp_path, template, list(controls)), template, TWICE) == expected


def test_plain_text_that_ends_a_turn_is_learned_and_told(tmp_path: Path) -> None:
    template = chatml_with("### ", "\n</turn>\n")
    tokenizer = build(tmp_path, template, [])
    ends = turn_ends(tokenizer, template)
    assert (ends.tokens, ends.texts) == ((), ("\n</turn>",))
    assert '"\\n</turn>"' in ends.warnings[0] and "plain text" in ends.warnings[0]
    assert learned(tokenizer, template, TWICE) == "It grinds.\n</turn>It rests.\n</turn>"
    assert stop_texts(tokenizer) == stops_of(tokenizer) == ("\n</turn>",)
    assert stops_of(tokenizer, is_base_model=True) == ()


def test_the_next_role_in_plain_words_ends_an_answer(tmp_path: Path) -> None:
    template = chatml_with("\n\n### ", "")
    tokenizer = build(tmp_path, template, [])
    assert turn_ends(tokenizer, template).texts == ("\n\n### user",)


def test_a_token_that_is_not_marked_as_a_control_token_ends_answers_and_is_told(
    tmp_path: Path,
) -> None:
    template = chatml_with("<|endoftext|>", "<done>\n")
    tokenizer = build(tmp_path, template, [AddedToken("<done>", special=False, normalized=False)])
    ends = turn_ends(tokenizer, template)
    assert ends.tokens == ("<done>",) and '"<done>"' in ends.warnings[0]
    assert tokenizer.token_id("<done>") in stop_ids(tokenizer)
    assert learned(tokenizer, template, TWICE) == "It grinds.<done>It rests.<done>"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (chatml_with("\n", "\n"), "plain text"),  # only the next role's name tells
        ("{% for m in messages %}{{ m.content + '\n' }}{% endfor %}", "writes nothing behind it"),
        ("{{ raise_exception('no') }}", "does not take a question"),
        ("{% for m in messages %}", "does not take a question"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "does not take a question"),
        (NEXT_ROLE, "no end behind the last answer"),
    ],
)
def test_what_is_doubtful_about_the_end_is_told(template: str, said: str, tmp_path: Path) -> None:
    ends = turn_ends(build(tmp_path, template, list(ROLES)), template)
    assert len(ends.warnings) == 1 and said in ends.warnings[0]


def test_what_is_doubtful_is_told_before_training_and_by_inspection(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path.resolve())
    write_conversations(workspace, "chat")
    template = chatml_with("### ", "\n</turn>\n")
    tokenizer = build(tmp_path / "model", template, [])
    recipe = tiny_recipe(training_type="ift", dataset="chat", data_mixture_ratio=1.0)
    expected = turn_ends(tokenizer, template).warnings
    data = prepare_data(recipe, workspace, tokenizer, 128)
    form = chat_format(recipe, tokenizer, 128)
    shown = preview_conversations(workspace.datasets / "chat", tokenizer, form, 128, 1, recipe)
    assert len(expected) == 1
    assert expected[0] in data.warnings and expected[0] in shown.notes


def test_a_model_without_template_stops_at_the_end_of_its_texts(tmp_path: Path) -> None:
    tokenizer = build(tmp_path, None, ["<|im_end|>"])
    assert stop_ids(tokenizer) == tokenizer.eos_ids == {0}
    assert stops_of(tokenizer) == ()
