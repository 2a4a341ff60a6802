"""`forgellm models quantize`: a model's weights in 4 or 8 bits."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from forgellm.paths import Workspace

if TYPE_CHECKING:
    from forgellm.schema.quantising import QuantisedModel


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    command = commands.add_parser(
        "quantize",
        help="make a model of 4 or 8 bits a weight in models/published/",
        description="Round a model's weights in groups, in MLX's format, which both engines load; "
        "compare the two, and measure size, perplexity and speed.",
    )
    command.add_argument("model", metavar="MODEL", help="what it is loaded by")
    command.add_argument("--bits", type=int, choices=(4, 8), default=4, help="(default: 4)")
    command.add_argument(
        "--group-size",
        type=int,
        choices=(32, 64, 128),
        default=64,
        help="weights that share a scale: fewer are more exact and take more space (default: 64)",
    )
    command.add_argument("--json", action="store_true", help="machine-readable output")


def run(args: argparse.Namespace, workspace: Workspace) -> int:
    """Raises ForgeError."""
    from forgellm.cli.model_choice import checked
    from forgellm.cli.progress import progress_bar
    from forgellm.publishing.quantise import quantise_model
    from forgellm.schema.quantising import QuantiseRequest

    request = checked(
        QuantiseRequest, model_name=args.model, bits=args.bits, group_size=args.group_size
    )
    with progress_bar() as on_progress:
        made = quantise_model(request, workspace, on_progress)
    if args.json:
        print(made.model_dump_json(indent=2))
        return 0
    print(f"Quantised as {made.model_name}")
    print(f"  in {made.published_model_path}/")
    for line in _figures(made):
        print(f"  {line}")
    print(f"  try it: forgellm cli generate --model {made.model_name}")
    return 0


def _figures(made: QuantisedModel) -> Iterator[str]:
    before, after, figures = made.before, made.after, made.verification
    yield f"size: {before.size_gb:.3f} GB before, {after.size_gb:.3f} GB after"
    if made.num_quantised < made.num_matrices:
        yield (
            f"only {made.num_quantised} of {made.num_matrices} matrices have rows of whole groups of "
            f"{made.group_size}; the others are as they were"
        )
    if figures is None:
        yield "not compared: the model itself does not fit into the memory that is free"
        return
    yield f"perplexity on general text: {before.perplexity} before, {after.perplexity} after"
    yield (
        f"tokens per second: {before.tokens_per_second:.1f} before, "
        f"{after.tokens_per_second:.1f} after ({made.engine})"
    )
    yield (
        f"agrees with the model on {100 * figures.top1_agreement:.1f} % of {figures.positions} "
        f"tokens; mean divergence {figures.mean_kl:.2g} nats"
    )
