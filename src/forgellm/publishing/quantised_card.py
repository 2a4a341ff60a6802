"""The README of a quantised model."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import yaml

from forgellm import __version__
from forgellm.catalog import ModelFolder
from forgellm.schema.quantising import QuantisedModel

_CARD = """\
{head}# {name}

`{model}` with weights in {bits} bits, one scale for each {group_size} weights, rounded by ForgeLLM
{version}. It is in MLX's affine format: {num_quantised} matrices are rounded to the nearest step
(no calibration), all else is as it was.

| | `{model}` | this model |
| --- | ---: | ---: |
| Size (GB) | {before.size_gb:.3f} | {after.size_gb:.3f} |
| Perplexity on general text | {before.perplexity} | {after.perplexity} |
| Tokens per second, one answer | {before.tokens_per_second:.1f} | {after.tokens_per_second:.1f} |

Perplexity and speed were measured with {engine}.
Read back from the disk, the two find the same next token most likely at {top1:.1f} % of {positions}
positions of general text; the mean divergence is {kl:.2g} nats ({dtype}).
Token ids of text and of conversations, the tokens that end an answer, and the chat template are the
same.

## Run it

```bash
forgellm cli generate --model {model_name}
mlx_lm.generate --model {path} --prompt "Hello"
```

ForgeLLM's torch engine computes with it too; `transformers` alone does not know the format.

## Made by

```bash
{command}
```

The licence of the model it was made of applies.
"""


def quantised_card(
    model: ModelFolder, made: QuantisedModel, command: Sequence[str], num_quantised: int
) -> str:
    """Markdown with the YAML head that the hub reads."""
    head: dict[str, Any] = {"library_name": "mlx", "pipeline_tag": "text-generation"}
    if model.kind == "cached":  # only then is the name one that the hub knows
        head["base_model"] = model.name
        head["base_model_relation"] = "quantized"
    head["tags"] = ["forgellm", "mlx", f"{made.bits}-bit"]
    return _CARD.format(
        head=f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n",
        name=made.model_name.rpartition("/")[2],
        model=model.name,
        bits=made.bits,
        group_size=made.group_size,
        version=__version__,
        num_quantised=num_quantised,
        before=made.before,
        after=made.after,
        engine=made.engine,
        top1=100 * made.verification.top1_agreement,
        positions=made.verification.positions,
        kl=made.verification.mean_kl,
        dtype=made.verification.dtype,
        model_name=made.model_name,
        path=made.published_model_path,
        command=shlex.join(command),
    )
