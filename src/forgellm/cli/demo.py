"""`forgellm demo`: teach the shipped model the shipped handbook, and measure what changed."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from forgellm.cli.terminal_text import clean
from forgellm.paths import find_workspace

if TYPE_CHECKING:
    from rich.console import Console

    from forgellm.demo.measure import Answer, Measurement
    from forgellm.demo.steps import Demo
    from forgellm.runs.store import Run

_SHOWN = 3  # questions whose answers are shown


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="teach the shipped model the shipped handbook, and measure",
        description="Trains SmolLM2-135M on a fictional guild's handbook and prints what it "
        "learned and what it forgot. Run again, it continues; finished, it shows the result. With "
        "--ift it learns to answer questions about the handbook, from conversations.",
    )
    parser.add_argument("--workspace", help="folder for models/ and dataset/ (default: here)")
    parser.add_argument(
        "--ift", action="store_true", help="teach conversations about it, not its text"
    )
    parser.add_argument("--fresh", action="store_true", help="start over with a new run")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Raises ForgeError."""
    from forgellm.cli.foreground import make_console
    from forgellm.demo.lessons import CPT, IFT
    from forgellm.demo.model import demo_model
    from forgellm.demo.steps import Demo
    from forgellm.publishing.dashboard_png import write_dashboard

    workspace = find_workspace(args.workspace)
    workspace.root.mkdir(parents=True, exist_ok=True)
    console = make_console()

    def progress(text: str) -> None:
        console.print(f"  {text}")

    console.print(f"ForgeLLM demo in {workspace.root}")
    demo = Demo.open(workspace, IFT if args.ift else CPT, fresh=args.fresh)
    model = demo_model(workspace, progress)
    demo.lesson.copy_material(workspace)
    demo.measure_before(model, progress)
    finished = _train(demo, console)
    if finished.state().phase != "completed":
        console.print("The demo was stopped; run it again and it continues.")
        return 130
    demo.measure_after(model, finished, progress)
    picture = write_dashboard(finished)
    _print_result(demo, finished, workspace.relative(picture))
    return 0


def _train(demo: Demo, console: Console) -> Run:
    """The demo's run: finished already, continued, or new."""
    from forgellm import supervisor
    from forgellm.cli.foreground import train_here
    from forgellm.runs import checkpoints

    run = demo.run()
    if run is not None and run.state().phase == "completed":
        return run
    resume = run is not None and bool(checkpoints.list_checkpoints(run.folder))
    if run is not None and resume:
        lock = supervisor.claim_resume(demo.workspace, run)
    else:
        settings = demo.lesson.recipe()
        assert settings.max_seq_length is not None
        run, lock = supervisor.claim_new_run(
            demo.workspace, settings, max_seq_length=settings.max_seq_length
        )
        demo.run_name, demo.after = run.name, None
        demo.save()
    train_here(run, lock, resume=resume, console=console)
    return run


def _print_result(demo: Demo, run: Run, picture: str) -> None:
    from rich.console import Console

    from forgellm.cli.summary import chat_command, command
    from forgellm.runs import checkpoints, summary
    from forgellm.runs.curve import effective, read_curve

    assert demo.before is not None and demo.after is not None
    table = effective(read_curve(run.folder)).table
    best = checkpoints.best_checkpoint(run.folder)
    assert best is not None
    minutes = run.state().training_seconds / 60
    out = Console(highlight=False, soft_wrap=True)
    out.print()
    out.print(_table(demo.before, demo.after, demo.lesson.held_out))
    for old, new in list(zip(demo.before.answers, demo.after.answers, strict=True))[:_SHOWN]:
        _print_answers(out, old, new)
    out.print(
        f"{table['trained_tokens'][-1]:,} tokens in {minutes:.1f} min with "
        f"{summary.average_tokens_per_second(table):,.0f} tok/s, "
        f"peak memory {summary.peak_memory_gb(table):.2f} GB"
    )
    out.print(f"Run:             {run.output_dir}")
    out.print(f"Best checkpoint: {demo.workspace.relative(best.weights)}")
    out.print(f"Picture:         {picture}")
    out.print(f"Chat with it:    {chat_command(run)}")
    out.print(f"Open the page:   {command(demo.workspace, 'start')}  ->  http://localhost:5002")


def _print_answers(out: Console, before: Answer, after: Answer) -> None:
    out.print(f"{before.question} ({before.expected})")
    for name, answer in (("before:", before), ("after: ", after)):
        out.print(f"  {name} {clean(' '.join(answer.said.split()))}", markup=False)
    out.print()


def _table(before: Measurement, after: Measurement, held_out: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=None)
    table.add_column("")
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right")
    for name, old, new in (
        (f"Loss, held-out {held_out}", before.held_out_loss, after.held_out_loss),
        ("Loss, held-out general text", before.general_loss, after.general_loss),
    ):
        table.add_row(name, f"{old:.3f}", f"{new:.3f}", f"{100 * (new / old - 1):+.1f} %")
    choices = [(m.probe_accuracy, m.probe_error) for m in (before, after)]
    table.add_row(f"{before.num_probes} questions, right (chance 25 %)", *_shares(*choices))
    table.add_row(
        "Probability of the right answer",
        f"{100 * before.probe_confidence:.1f} %",
        f"{100 * after.probe_confidence:.1f} %",
        f"{100 * (after.probe_confidence - before.probe_confidence):+.1f}",
    )
    if before.answers:
        answered = _shares(before.answered, after.answered)
        table.add_row(f"{len(before.answers)} of them asked, answered right", *answered)
    return table


def _shares(before: tuple[float, float], after: tuple[float, float]) -> tuple[str, str, str]:
    """Each a share with its standard error, and the gain."""
    shown = [f"{100 * share:.1f} ± {100 * error:.1f} %" for share, error in (before, after)]
    return shown[0], shown[1], f"{100 * (after[0] - before[0]):+.1f}"
