"""`forgellm publish`: a checkpoint as a model of its own."""

from __future__ import annotations

import argparse
from typing import Any

from forgellm.cli.model_choice import add_changed_base_flag
from forgellm.errors import CheckpointNotFound
from forgellm.paths import find_workspace


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "publish",
        help="make a model of a checkpoint",
        description="Merge a checkpoint into its base model, compare the two, and write the result "
        "to models/published/.",
    )
    parser.add_argument("--workspace", help="folder that holds models/ and dataset/")
    parser.add_argument(
        "--run", dest="run_name", required=True, metavar="RUN", help="its name, id or folder"
    )
    parser.add_argument(
        "--iteration", type=int, metavar="N", help="which checkpoint (default: the best)"
    )
    parser.add_argument(
        "--dtype",
        choices=("stored", "float32"),
        default="stored",
        help="what weights are stored in: as the base stores its own, rounded to it (default), or "
        "exactly, in float32, at twice the size",
    )
    add_changed_base_flag(parser)
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Raises ForgeError."""
    from forgellm.cli.progress import progress_bar
    from forgellm.publishing.publish import publish_checkpoint
    from forgellm.runs.checkpoints import best_checkpoint, find_checkpoint
    from forgellm.runs.store import find_run

    found = find_run(find_workspace(args.workspace), args.run_name)
    checkpoint = best_checkpoint(found.folder)
    if args.iteration is not None:
        checkpoint = find_checkpoint(found.folder, args.iteration)
    if checkpoint is None:
        raise CheckpointNotFound("This run has no checkpoint yet", details={"run": found.name})
    with progress_bar() as on_progress:
        published = publish_checkpoint(
            found,
            checkpoint,
            args.dtype,
            allow_changed_base=args.allow_changed_base,
            on_progress=on_progress,
        )
    if args.json:
        import json
        from dataclasses import asdict

        print(json.dumps(asdict(published), indent=2))
        return 0
    figures = published.verification
    print(f"Published iteration {checkpoint.iteration} as {published.model_name}")
    print(f"  in {published.published_model_path}/")
    print(
        f"  agrees with the checkpoint on {100 * figures['top1_agreement']:.1f} % of "
        f"{figures['positions']} tokens; mean divergence {figures['mean_kl']:.2g} nats"
    )
    print(f"  try it: forgellm cli generate --model {published.model_name}")
    return 0
