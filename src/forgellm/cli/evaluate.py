"""`forgellm eval`: what a model, a run or a checkpoint knows, and how well it predicts general text."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from forgellm.cli.model_choice import add_changed_base_flag
from forgellm.paths import find_workspace

if TYPE_CHECKING:
    from forgellm.schema.evaluation import GeneralFigures, ModelEvaluation, ProbeFigures


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "eval",
        help="measure what a model knows",
        description="Score probe files and general text, with intervals. Without --general, the "
        "general text that comes along.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="a model, a run (its best checkpoint) or a checkpoint")
    add("--probes", metavar="FILE", action="append", default=[], help="probe file; may be repeated")
    add(
        "--general",
        metavar="PATH",
        action="append",
        help="file or folder of general text; may be repeated",
    )
    add("--engine", choices=["auto", "torch", "mlx"], default="auto")
    add("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    add_changed_base_flag(parser)
    add("--json", action="store_true", help="machine-readable output")
    add("--workspace", help="folder that holds models/ and dataset/")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Raises ForgeError."""
    from forgellm.cli.model_choice import checked
    from forgellm.evaluation.any_model import evaluate_model
    from forgellm.schema.evaluation import EvaluateRequest

    request = checked(
        EvaluateRequest,
        model=args.model,
        probe_files=args.probes,
        general_files=args.general or ["shipped"],
        engine=args.engine,
        dtype=args.dtype,
        allow_changed_base=args.allow_changed_base,
    )
    found = evaluate_model(request, find_workspace(args.workspace), allow_absolute=True)
    print(found.model_dump_json(indent=2) if args.json else as_text(found))
    return 0


def as_text(found: ModelEvaluation) -> str:
    """The figures, a line a file."""
    from forgellm.cli.terminal_text import clean

    place = f"{found.engine} on {found.device}, {found.dtype}"
    lines = [f"{found.model}{f' ({found.checkpoint})' if found.checkpoint else ''}, {place}", ""]
    lines += [_probe_line(figures) for figures in found.probes]
    lines += [_general_line(figures) for figures in found.general]
    return "\n".join(clean(line) for line in lines)


def _probe_line(figures: ProbeFigures) -> str:
    low, high = figures.accuracy_low, figures.accuracy_high
    right = figures.right.count("1")
    text = f"{figures.file}: {right} of {figures.num_probes} right, {figures.accuracy:.1%}"
    text += f" (95 % interval {low:.1%} to {high:.1%})"
    return text if figures.confidence is None else f"{text}, confidence {figures.confidence:.1%}"


def _general_line(figures: GeneralFigures) -> str:
    loss = "not finite" if figures.loss is None else f"{figures.loss:.4f} nats per token"
    error = "" if figures.standard_error is None else f" \u00b1 {figures.standard_error:.4f}"
    return f"{figures.file}: loss {loss}{error} ({figures.num_documents} documents)"
