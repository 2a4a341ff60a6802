"""What lies beside an exported GGUF file: the Modelfile for Ollama, and the README."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

from forgellm import __version__
from forgellm.catalog import ModelFolder
from forgellm.data.chat.turn_ends import stop_texts, stop_tokens
from forgellm.data.tokenizer import Tokenizer
from forgellm.publishing.card_head import card_head, licence_shown
from forgellm.publishing.sources import shown_name

_MAX_CONTEXT = 8192  # what Ollama takes memory for; whoever needs more can say so
_QUOTABLE = re.compile(r"[^\"\\\x00-\x1f\x7f]+")

_CARD = """\
{head}# {name}, {type}

`{file}` is the model `{model}` in GGUF format with weights in {type}, written by ForgeLLM {version}.

| | |
| --- | --- |
| Architecture | {architecture} |
| Context | {context:,} tokens |
| Size | {size_gb:.3f} GB; the model it was made of takes {model_size_gb:.3f} GB |
| Perplexity on general text | {perplexity}; of the model {model_perplexity} |
| Same likeliest token | {top1:.2f} % of {positions} positions of general text |
| Mean divergence | {kl:.2g} nats |

The file was read back, its weights made plain again, and compared with the model token by token
(in {dtype}). Token ids of text and of conversations, the tokens that end an answer, and the chat
template are the same.

## Run it

With llama.cpp: `llama-cli -m {file}` or `llama-server -m {file}`.

With Ollama, in this folder: `ollama create {lower} -f Modelfile`, then `ollama run {lower}`.
The chat template is in the GGUF file (`tokenizer.chat_template`). Ollama uses it where it knows
it; otherwise add a `TEMPLATE` line to the Modelfile.

## Made by

```bash
{command}
```

The licence of the model it was made of ({licence}) applies.
"""


def modelfile(file_name: str, tokenizer: Tokenizer, context_length: int) -> str:
    """For `ollama create`. A token that cannot be quoted there is left to the file itself."""
    lines = [f"FROM ./{file_name}", f"PARAMETER num_ctx {min(context_length, _MAX_CONTEXT)}"]
    stops = [token for token in sorted(stop_tokens(tokenizer)) if _QUOTABLE.fullmatch(token)]
    stops += [text for text in stop_texts(tokenizer) if _QUOTABLE.fullmatch(text)]
    return "\n".join([*lines, *(f'PARAMETER stop "{token}"' for token in stops)]) + "\n"


def gguf_card(
    model: ModelFolder,
    kind: str,
    file_name: str,
    config: dict[str, Any],
    figures: dict[str, Any],
    command: Sequence[str],
) -> str:
    """Markdown with the YAML head that the hub reads."""
    name = model.name.rsplit("/", 1)[-1]
    compared = figures["verification"]
    return _CARD.format(
        head=card_head("gguf", model, ["gguf"]),
        name=name,
        licence=licence_shown(model),
        lower=re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("._-") or "model",
        model=shown_name(model.name),
        type=kind,
        file=file_name,
        version=__version__,
        architecture=model.facts.architecture,
        context=config["max_position_embeddings"],
        size_gb=figures["size_gb"],
        model_size_gb=figures["model_size_gb"],
        perplexity=figures["perplexity"],
        model_perplexity=figures["model_perplexity"],
        top1=100 * compared["top1_agreement"],
        positions=compared["positions"],
        kl=compared["mean_kl"],
        dtype=compared["dtype"],
        command=shlex.join(command),
    )
