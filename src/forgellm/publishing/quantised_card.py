"""The README of a quantised model."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from forgellm import __version__
from forgellm.catalog import ModelFolder
from forgellm.publishing.card_head import card_head, licence_shown
from forgellm.publishing.sources import shown_name
from forgellm.schema.quantising import QuantisedModel

_CARD = """\
{head}# {name}

`{model}` with weights in {bits} bits, one scale for each {group_size} weights, rounded by ForgeLLM
{version}. It is in MLX's affine format: {num_quantised} of {num_matrices} matrices are rounded to the
nearest step (no calibration), all else is as it was.

| | `{model}` | this model |
| --- | ---: | ---: |
{rows}
{compared}
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

The licence of the model it was made of ({licence}) applies.
"""
_COMPARED = """\
Perplexity and speed were measured with {engine}.
Read back from the disk, the two find the same next token most likely at {top1:.1f} % of {positions}
positions of general text; the mean divergence is {kl:.2g} nats ({dtype})."""
_NOT_COMPARED = """\
Its answers were not compared with the model's, which did not fit into memory where this was made. The
weights were read back from the disk and are the model's, rounded."""


def quantised_card(model: ModelFolder, made: QuantisedModel, command: Sequence[str]) -> str:
    """Markdown with the YAML head that the hub reads."""
    return _CARD.format(
        head=card_head("mlx", model, ["mlx", f"{made.bits}-bit"]),
        name=made.model_name.rpartition("/")[2],
        model=shown_name(model.name),
        bits=made.bits,
        group_size=made.group_size,
        version=__version__,
        num_quantised=made.num_quantised,
        num_matrices=made.num_matrices,
        rows=_rows(made),
        compared=_compared(made),
        model_name=made.model_name,
        path=made.published_model_path,
        command=shlex.join(command),
        licence=licence_shown(model),
    )


def _rows(made: QuantisedModel) -> str:
    before, after = made.before, made.after
    rows = [("Size (GB)", f"{before.size_gb:.3f}", f"{after.size_gb:.3f}")]
    if made.verification is not None:
        speeds = f"{before.tokens_per_second:.1f}", f"{after.tokens_per_second:.1f}"
        rows.append(("Perplexity on general text", str(before.perplexity), str(after.perplexity)))
        rows.append(("Tokens per second, one answer", speeds[0], speeds[1]))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _compared(made: QuantisedModel) -> str:
    found = made.verification
    if found is None:
        return _NOT_COMPARED
    return _COMPARED.format(
        engine=made.engine,
        top1=100 * found.top1_agreement,
        positions=found.positions,
        kl=found.mean_kl,
        dtype=found.dtype,
    )
