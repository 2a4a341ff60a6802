"""`forgellm models combine`: adapters of one base model as one model."""

from __future__ import annotations

import argparse
from typing import Any

from forgellm.cli.model_choice import add_changed_base_flag
from forgellm.paths import Workspace
from forgellm.schema.combining import COMBINE_METHODS


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "combine",
        help="make one model of several adapters",
        description="Combine adapters that were trained on the same model, weight by weight, and "
        "write that model to models/published/.",
    )
    add = parser.add_argument
    add(
        "checkpoints",
        nargs="+",
        metavar="RUN[@ITERATION]",
        help="a run's name or id; without an iteration its best checkpoint",
    )
    add("--name", required=True, help="name of the new model's folder")
    add(
        "--method",
        choices=COMBINE_METHODS,
        default="linear",
        help="weighted sum (linear), TIES, or either after DARE (default: linear)",
    )
    add(
        "--weights",
        type=float,
        nargs="+",
        metavar="W",
        help="one for each (default: 1 each with ties and dare_ties, else equal shares of 1)",
    )
    add("--density", type=float, default=0.5, help="share that ties and dare keep (default: 0.5)")
    add("--seed", type=int, default=0, help="of what dare keeps (default: 0)")
    add_changed_base_flag(parser)
    add("--json", action="store_true", help="machine-readable output")


def run(args: argparse.Namespace, workspace: Workspace) -> int:
    """Raises ForgeError."""
    from forgellm.cli.model_choice import checked
    from forgellm.cli.progress import progress_bar
    from forgellm.publishing.combine import combine
    from forgellm.schema.combining import CombineRequest

    fields = (
        "checkpoints", "name", "method", "weights", "density", "seed", "allow_changed_base",
    )  # fmt: skip
    request = checked(CombineRequest, **{name: getattr(args, name) for name in fields})
    with progress_bar() as on_progress:
        combined = combine(request, workspace, on_progress)
    if args.json:
        import json

        print(json.dumps(combined, indent=2))
        return 0
    print(f"Combined {len(combined['parts'])} checkpoints as {combined['model_name']}")
    print(f"  in {combined['published_model_path']}/")
    for part in combined["parts"]:
        print(
            f"  predicts as {part['checkpoint']} alone on {100 * part['top1_agreement']:.1f} % of "
            f"general text; mean divergence {part['mean_kl']:.2g} nats"
        )
    figures = combined["verification"]
    if "mean_kl" in figures:
        print(
            f"  agrees with all adapters beside the base on {100 * figures['top1_agreement']:.1f} % "
            f"of {figures['positions']} tokens; mean divergence {figures['mean_kl']:.2g} nats"
        )
    print(f"  try it: forgellm cli generate --model {combined['model_name']}")
    return 0
