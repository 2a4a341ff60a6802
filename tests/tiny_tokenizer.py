"""A real byte-level BPE tokenizer of a few hundred tokens, trained on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TRAINING_TEXT = """\
The mill stands where two rivers meet. Its wheel turns all day, and in the evening the miller
counts the sacks, writes the number into a book and closes the door. In the morning the door is
opened again, the book is read, and the sacks are carried to the boats.

# Rules of the mill

1. The wheel is stopped before anyone works on the stones.
2. A sack weighs 50 kilograms; a boat carries 40 sacks, which is 2000 kilograms.
3. Nobody counts the sacks of another. Who has counted signs the book.

"Why do you count them twice?" asked the apprentice. "Because," said the miller, "the river takes
one sack in a hundred, and I want to know which one." The apprentice laughed; the miller did not.

def count(sacks):
    total = 0
    for sack in sacks:
        if sack.weight > 0:
            total += 1
    return total

In winter the rivers freeze and the wheel stands still. Then the miller mends the belts, oils the
shaft and tells the stories that the boatmen brought in summer: of the lighthouse on the island, of
the market in the town below the hills, and of the bridge that was built in one night. In spring
the ice breaks with a noise like thunder, the wheel begins to turn, and the year begins again.
user asks, assistant answers, system tells both of them how. What is the mill for? It grinds the
grain of eleven villages, and the flour goes down the river to the town.
"""


def build_tiny_tokenizer(folder: Path) -> Path:
    """Write tokenizer.json and its companions into `folder`; the ids of CONTROL_TOKENS are 0, 1, 2.

    As in many chat models, a BOS token is named in the configuration but never added.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=CONTROL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TRAINING_TEXT], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|im_end|>",
            "model_max_length": 1024,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    _write_json(
        folder / "generation_config.json",
        {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
    )
    return folder


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
