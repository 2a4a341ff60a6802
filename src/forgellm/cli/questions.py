"""`forgellm data questions`: pairs of question and answer, made of a dataset's documents."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgellm.errors import InvalidRequest
from forgellm.paths import Workspace

if TYPE_CHECKING:
    from forgellm.questions.asker import Asker


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    parser = commands.add_parser(
        "questions",
        help="make questions and answers of documents, with a model",
        description="Make a dataset of questions and answers of a dataset's documents: a model "
        "writes them, and those are kept that it answers again from the text. Run it again to go on.",
    )
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="whose documents are asked about")
    add("--out", required=True, metavar="NAME", help="dataset for the pairs; made, or continued")
    add("--model", help="a model's name or folder, to work in this process")
    add("--adapter-path", metavar="PATH", help="a run's folder or one checkpoint in it")
    add("--endpoint", metavar="URL", help="an OpenAI-compatible address instead, up to /v1")
    add("--api-model", metavar="NAME", help="with --endpoint: the model's name there")
    add("--per-passage", type=int, default=1, metavar="N", help="attempts at each (default: 1)")
    add("--limit", type=int, metavar="N", help="pairs at which to end")
    add("--seed", type=int, default=42, metavar="N", help="order and sampling (default: 42)")
    add(
        "--known",
        choices=("mark", "drop", "ignore"),
        default="mark",
        help="pairs answered without the text too (default: mark)",
    )
    add("--max-tokens", type=int, default=120, metavar="N", help="of each reply (default: 120)")


def run(args: argparse.Namespace, workspace: Workspace) -> int:
    """Raises ForgeError."""
    from forgellm.cli.model_choice import checked
    from forgellm.questions.make import make_questions
    from forgellm.schema.questions import QuestionsRequest

    request = checked(
        QuestionsRequest,
        dataset=args.dataset,
        name=args.out.removeprefix("dataset/"),
        per_passage=args.per_passage,
        limit=args.limit,
        seed=args.seed,
        known=args.known,
        max_tokens=args.max_tokens,
    )
    with _asker(args, workspace) as asker, _progress() as on_progress:
        report = make_questions(workspace, request, asker, on_progress)
    for reason, count in report["outcomes"].items():
        print(f"{count:6,}  {reason}")
    print(f"{report['kept']:,} pairs in dataset/{request.name}/ (report.json says the rest)")
    return 0


def _asker(args: argparse.Namespace, workspace: Workspace) -> AbstractContextManager[Asker]:
    from forgellm.endpoint import key_in
    from forgellm.questions.asker import KEY_VARIABLE, EndpointAsker, EngineAsker

    if args.endpoint:
        if not args.api_model or args.model or args.adapter_path:
            raise InvalidRequest(
                "--endpoint goes with --api-model, and with no model of this machine"
            )
        return EndpointAsker(args.endpoint, args.api_model, key=key_in(KEY_VARIABLE))
    if args.api_model:
        raise InvalidRequest("--api-model needs --endpoint")
    from forgellm.cli.model_choice import ModelChoice

    choice = ModelChoice.of_flags(workspace, args.model, args.adapter_path)
    name = choice.adapter_path or choice.model_name
    shown = Path(name).name if Path(name).is_absolute() else name
    return nullcontext(EngineAsker(shown, *choice.open()))


@contextmanager
def _progress() -> Iterator[Callable[[float, str], None]]:
    """A bar on standard error; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("reading", total=1.0)
        yield lambda done, text: bar.update(task, completed=done, description=text)
