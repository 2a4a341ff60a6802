"""`forgellm data probes`: held-out questions from a dataset's documents, without a model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from forgellm.paths import Workspace


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    parser = commands.add_parser(
        "probes",
        help="make held-out questions of documents, without a model",
        description="Make a probe file: sentences of a dataset, each cut before a date, a number, a"
        " name or a rare word, with three wrong ends of the same kind.",
    )
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="whose documents are asked about")
    add(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="the probe file, such as probes.json",
    )
    add("--num", type=int, default=100, metavar="N", help="facts to ask for (default: 100)")
    add("--seed", type=int, default=42, metavar="N", help="of the choice (default: 42)")
    add(
        "--form",
        choices=("choice", "cloze", "both"),
        default="choice",
        help="chosen among four ends, or completed in the model's own words (default: choice)",
    )
    add(
        "--hold-out",
        action="store_true",
        help="also make dataset/DATASET-held-out, a copy without the sentences asked about",
    )


def run(args: argparse.Namespace, workspace: Workspace) -> int:
    """Raises ForgeError."""
    from forgellm.data.datasets import find_dataset
    from forgellm.errors import InvalidRequest, PathNotFound
    from forgellm.questions.probes import make_probes

    if args.num < 1 or args.seed < 0:
        raise InvalidRequest("--num must be at least 1, --seed at least 0")
    if not args.out.parent.is_dir():
        raise PathNotFound(f"There is no folder {args.out.parent}")
    folder = find_dataset(workspace, args.dataset)
    hold_out = folder.with_name(f"{folder.name}-held-out") if args.hold_out else None
    report = make_probes(
        folder, args.out, num=args.num, seed=args.seed, form=args.form, hold_out=hold_out
    )
    baselines = report["baselines"]
    print(f"{report['facts']} facts, {report['restated']} of them said elsewhere in other words")
    print("Right without knowing anything, of the choices: " + ", ".join(
        f"{name.replace('_', ' ')} {share:.0%}" for name, share in baselines.items()
    ))  # fmt: skip
    if hold_out is not None:
        print(f"Train on dataset/{hold_out.name}: the sentences asked about are not in it")
    else:
        print(
            "The sentences stand in the dataset as they are asked; --hold-out makes a copy without"
        )
    return 0
