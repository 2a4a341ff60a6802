"""A row in the shape of each dataset that the tables name, and what is said in it."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

Turns = list[dict[str, Any]]


class Sample(NamedTuple):
    """`unused` are the columns that are told as not used."""

    row: Any
    turns: Turns
    unused: tuple[str, ...] = ()
    tools: list[Any] | None = None


class PairSample(NamedTuple):
    row: Any
    shared: Turns
    chosen: str
    rejected: str
    unused: tuple[str, ...] = ()


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


ASKED, ANSWERED = "Where do the oars lie?", "Behind the boathouse."
PAIR = [user(ASKED), answer(ANSWERED)]
BRIEF = system("Speak like a ferryman.")
MORE = [*PAIR, user("And the sails?"), answer("In the loft.")]
SHARED = [{"from": "human", "value": ASKED}, {"from": "gpt", "value": ANSWERED}]
TOOL = {"name": "tide", "description": "Height of the tide.", "parameters": {"type": "object"}}
WRAPPED = {"type": "function", "function": TOOL}
CALL = {"type": "function", "function": {"name": "tide", "arguments": {"at": "noon"}}}

CONVERSATIONS: dict[str, Sample] = {
    "OpenAI": Sample({"messages": [BRIEF, *PAIR], "parallel_tool_calls": True}, [BRIEF, *PAIR], ("parallel_tool_calls",)),
    "TRL": Sample({"messages": PAIR}, PAIR),
    "MLX": Sample({"messages": PAIR, "tools": [WRAPPED]}, PAIR, (), [WRAPPED]),
    "UltraChat": Sample({"prompt": ASKED, "prompt_id": "b7", "messages": MORE}, MORE, ("prompt", "prompt_id")),
    "UltraChat (raw)": Sample({"id": "4", "data": [turn["content"] for turn in MORE]}, MORE, ("id",)),
    "OASST as conversations": Sample({"messages": [{"role": "prompter", "content": ASKED}, answer(ANSWERED)]}, PAIR),
    "Tulu": Sample({"id": "t1", "messages": PAIR, "source": "ferry/notes"}, PAIR, ("id", "source")),
    "No Robots": Sample({"prompt": ASKED, "prompt_id": "n", "messages": PAIR, "category": "Open QA"}, PAIR, ("prompt", "prompt_id", "category")),
    "smoltalk": Sample({"full_topic": "Boats/Oars", "messages": PAIR, "source": "s"}, PAIR, ("full_topic", "source")),
    "LLaMA-Factory (OpenAI style)": Sample({"messages": [BRIEF, *PAIR], "tools": json.dumps([TOOL])}, [BRIEF, *PAIR], (), [WRAPPED]),
    "Axolotl chat_template": Sample({"messages": [user(ASKED), answer(ANSWERED, train=True, weight=1)]}, PAIR),
    "ShareGPT": Sample({"id": "x_0", "conversations": SHARED}, PAIR, ("id",)),
    "OpenHermes": Sample(
        {"conversations": SHARED, "system_prompt": BRIEF["content"], "skip_prompt_formatting": None, "category": "orca", "idx": None},
        [BRIEF, *PAIR],
        ("category",),
    ),
    "SlimOrca": Sample(
        {"conversations": [{"from": "system", "value": BRIEF["content"], "weight": None}, {**SHARED[0], "weight": 0.0}, {**SHARED[1], "weight": 1.0}]},
        [BRIEF, *PAIR],
    ),
    "Magpie": Sample(
        {"uuid": "u", "instruction": ASKED, "response": ANSWERED, "conversations": SHARED, "difficulty": "easy"},
        PAIR,
        ("uuid", "instruction", "response", "difficulty"),
    ),
    "LIMA": Sample({"conversations": [ASKED, ANSWERED], "source": "stack"}, PAIR, ("source",)),
    "LLaMA-Factory sharegpt": Sample(
        {
            "conversations": [
                {"from": "human", "value": ASKED},
                {"from": "function_call", "value": '{"name": "tide", "arguments": {"at": "noon"}}'},
                {"from": "observation", "value": "low"},
                {"from": "gpt", "value": ANSWERED},
            ],
            "system": BRIEF["content"],
            "tools": json.dumps([TOOL]),
        },
        [BRIEF, user(ASKED), answer("", tool_calls=[CALL]), {"role": "tool", "content": "low"}, answer(ANSWERED)],
        (),
        [WRAPPED],
    ),
    "Capybara": Sample(
        {"source": "c", "conversation": [{"input": ASKED, "output": ANSWERED}, {"input": "And the sails?", "output": "In the loft."}]},
        MORE,
        ("source",),
    ),
    "xLAM": Sample(
        {"id": 3, "query": ASKED, "tools": json.dumps([TOOL]), "answers": '[{"name": "tide", "arguments": {"at": "noon"}}]'},
        [user(ASKED), answer("", tool_calls=[CALL])],
        ("id",),
        [WRAPPED],
    ),
    "Glaive": Sample(
        {
            "system": "SYSTEM: " + BRIEF["content"],
            "chat": f"USER: {ASKED}\n\n\nASSISTANT: One moment. <|endoftext|>\n\n\nFUNCTION RESPONSE: low\n\n\nASSISTANT: {ANSWERED} <|endoftext|>\n\n\n",
        },
        [BRIEF, user(ASKED), answer("One moment."), {"role": "tool", "content": "low"}, answer(ANSWERED)],
    ),
    "SQuAD": Sample(
        {"id": "5", "title": "Boats", "context": "The oars are dry.", "question": ASKED, "answers": {"text": [ANSWERED], "answer_start": [0]}},
        [user(f"The oars are dry.\n\n{ASKED}"), answer(ANSWERED)],
        ("id", "title"),
    ),
    "Alpaca": Sample(
        {"instruction": "Translate.", "input": "Boot", "output": "boat", "text": "Below is ..."},
        [user("Translate.\n\nBoot"), answer("boat")],
        ("text",),
    ),
    "CodeAlpaca": Sample({"instruction": ASKED, "input": "", "output": ANSWERED}, PAIR),
    "Dolly": Sample(
        {"instruction": ASKED, "context": "The boathouse is green.", "response": ANSWERED, "category": "closed_qa"},
        [user(f"{ASKED}\n\nThe boathouse is green."), answer(ANSWERED)],
        ("category",),
    ),
    "LLaMA-Factory alpaca": Sample(
        {"instruction": "And the sails?", "input": "", "output": "In the loft.", "system": BRIEF["content"], "history": [[ASKED, ANSWERED]]},
        [BRIEF, *MORE],
    ),
    "Axolotl alpaca": Sample({"system": BRIEF["content"], "instruction": ASKED, "output": ANSWERED}, [BRIEF, *PAIR]),
    "TRL prompt and completion": Sample({"prompt": [user(ASKED)], "completion": [answer(ANSWERED)]}, PAIR),
    "MLX prompt and completion": Sample({"prompt": ASKED, "completion": ANSWERED}, PAIR),
    "HelpSteer": Sample(
        {"prompt": ASKED, "response": ANSWERED, "helpfulness": 4, "verbosity": 1},
        PAIR,
        ("helpfulness", "verbosity"),
    ),
    "GSM8K": Sample({"question": "Two oars and three?", "answer": "2+3=5\n#### 5"}, [user("Two oars and three?"), answer("2+3=5\n#### 5")]),
    "OpenOrca": Sample(
        {"id": "flan.1", "system_prompt": BRIEF["content"], "question": ASKED, "response": ANSWERED},
        [BRIEF, *PAIR],
        ("id",),
    ),
    "MetaMath": Sample(
        {"type": "GSM_AnsAug", "query": ASKED, "original_question": "Oars?", "response": ANSWERED},
        PAIR,
        ("type", "original_question"),
    ),
    "OASST Guanaco": Sample({"text": f"### Human: {ASKED}### Assistant: {ANSWERED}"}, PAIR),
}  # fmt: skip

BETTER, WORSE = "Behind the boathouse.", "No idea."
_SCORES = {"score_chosen": 8.5, "score_rejected": 3.0}

PREFERENCES: dict[str, PairSample] = {
    "TRL preference": PairSample({"prompt": [user(ASKED)], "chosen": [answer(BETTER)], "rejected": [answer(WORSE)]}, [user(ASKED)], BETTER, WORSE),
    "TRL preference without prompt": PairSample({"chosen": [user(ASKED), answer(BETTER)], "rejected": [user(ASKED), answer(WORSE)]}, [user(ASKED)], BETTER, WORSE),
    "HH-RLHF": PairSample(
        {"chosen": f"\n\nHuman: Hello\n\nAssistant: Ahoy\n\nHuman: {ASKED}\n\nAssistant: {BETTER}", "rejected": f"\n\nHuman: Hello\n\nAssistant: Ahoy\n\nHuman: {ASKED}\n\nAssistant: {WORSE}"},
        [user("Hello"), answer("Ahoy"), user(ASKED)],
        BETTER,
        WORSE,
    ),
    "UltraFeedback (binarised)": PairSample(
        {"prompt": ASKED, "prompt_id": "p", "chosen": [user(ASKED), answer(BETTER)], "rejected": [user(ASKED), answer(WORSE)], "messages": [user(ASKED), answer(BETTER)], **_SCORES},
        [user(ASKED)],
        BETTER,
        WORSE,
        ("prompt_id", "messages", "score_chosen", "score_rejected"),
    ),
    "Orca DPO": PairSample(
        {"system": BRIEF["content"], "question": ASKED, "chosen": BETTER, "rejected": WORSE},
        [BRIEF, user(ASKED)],
        BETTER,
        WORSE,
    ),
    "LLaMA-Factory alpaca preference": PairSample(
        {"instruction": "And here:", "input": ASKED, "chosen": BETTER, "rejected": WORSE, "history": [["Hello", "Ahoy"]]},
        [user("Hello"), answer("Ahoy"), user(f"And here:\n\n{ASKED}")],
        BETTER,
        WORSE,
    ),
    "LLaMA-Factory sharegpt preference": PairSample(
        {"conversations": [{"from": "human", "value": ASKED}], "chosen": {"from": "gpt", "value": BETTER}, "rejected": {"from": "gpt", "value": WORSE}, "system": BRIEF["content"]},
        [BRIEF, user(ASKED)],
        BETTER,
        WORSE,
    ),
    "OpenAI preference": PairSample(
        {"input": {"messages": [user(ASKED)], "tools": []}, "preferred_output": [answer(BETTER)], "non_preferred_output": [answer(WORSE)]},
        [user(ASKED)],
        BETTER,
        WORSE,
    ),
    "HelpSteer2 preference": PairSample(
        {"prompt": ASKED, "response_1": WORSE, "response_2": BETTER, "preference_strength": 2, "preference_statement": "2 is better"},
        [user(ASKED)],
        BETTER,
        WORSE,
        ("preference_statement",),
    ),
    "HelpSteer3 preference": PairSample(
        {"domain": "boats", "context": [user(ASKED)], "response1": BETTER, "response2": WORSE, "overall_preference": -3},
        [user(ASKED)],
        BETTER,
        WORSE,
        ("domain",),
    ),
}  # fmt: skip

REFUSED: dict[str, Any] = {
    "Pictures and sound": {"messages": PAIR, "images": ["oars.png"]},
    "KTO": {"prompt": ASKED, "completion": ANSWERED, "label": False},
    "Rows of weight 0": {"messages": PAIR, "weight": 0.0},
    "OASST as single messages": {"message_id": "2", "parent_id": "1", "text": ANSWERED, "role": "assistant"},
    "OASST as trees": {"message_tree_id": "1", "prompt": {"text": ASKED, "role": "prompter", "replies": []}},
    "Axolotl input_output": {"segments": [{"label": False, "text": ASKED}, {"label": True, "text": ANSWERED}]},
}  # fmt: skip
