"""`forgellm train`: a run in the foreground."""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from forgellm.errors import ConfigError, InvalidRequest, TrainingAlreadyRunning
from forgellm.paths import Workspace, find_workspace
from forgellm.schema.chain import StageRecipe, parse_stages
from forgellm.schema.recipe import MACHINE_FIELDS, Recipe, parse_recipe

if TYPE_CHECKING:
    from rich.console import Console

    from forgellm.runs.store import Run

# Lists of texts that may hold a comma. The values of others may also be separated by commas.
_WITH_COMMAS = ("probe_files", "general_files", "sample_prompts")
_WAIT_SECONDS = 2.0


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train a model on the documents of a dataset",
        description="Train in this terminal. Ctrl-C stops gracefully and keeps a checkpoint.",
    )
    parser.add_argument("--workspace", help="folder that holds models/ and dataset/")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="run.yaml",
        help="a recipe, or stages of a chain; flags override it",
    )
    parser.add_argument("--resume", metavar="RUN", help="continue a run: its name, id or folder")
    fields = parser.add_argument_group("recipe")
    for name, field in Recipe.model_fields.items():
        flags = ["--" + name.replace("_", "-")]
        if name == "model_name":
            flags.insert(0, "--model")
        text = (field.description or "").replace("%", "%%")
        if field.annotation is bool:
            fields.add_argument(
                *flags, dest=name, action=argparse.BooleanOptionalAction, default=None, help=text
            )
        elif _kinds_of(field.annotation) & {list, dict}:
            fields.add_argument(
                *flags,
                dest=name,
                nargs="+",
                action="extend",
                metavar=_metavars(field.annotation),
                help=text,
            )
        else:
            fields.add_argument(*flags, dest=name, metavar=_metavar(field.annotation), help=text)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Raises ForgeError."""
    from forgellm.cli.chain import train_chain
    from forgellm.cli.foreground import make_console
    from forgellm.engines.process_group import mlx_rank
    from forgellm.runs.store import find_run
    from forgellm.training.session import Session

    workspace = find_workspace(args.workspace)
    console = make_console()
    given = {n: v for n in Recipe.model_fields if (v := getattr(args, n)) is not None}
    allow_changed_base = bool(args.resume and given.pop("allow_changed_base", False))
    if args.resume and (args.config or given.keys() - MACHINE_FIELDS):
        raise InvalidRequest(
            "--resume continues a run as it was; only who shares the work may change: "
            + ", ".join("--" + name.replace("_", "-") for name in sorted(MACHINE_FIELDS))
            + "; and --allow-changed-base, the model"
        )
    _require_no_launcher(given)
    stages = stages_from(args.config, given)
    if stages is not None:
        if mlx_rank() is not None:
            raise InvalidRequest("mlx.launch trains one recipe at a time, without stages")
        train_chain(workspace, *stages, console)
        return 0
    resumed = find_run(workspace, args.resume) if args.resume else None
    recipe = _shared_anew(resumed, given) if resumed else recipe_from(args.config, given)
    if mlx_rank():
        Session().follow(recipe, workspace, resumed)
    elif not _trained_along(workspace, recipe, console):
        _train(workspace, recipe, resumed, console, allow_changed_base)
    return 0


def _require_no_launcher(given: dict[str, Any]) -> None:
    """Raises InvalidRequest where processes are started twice."""
    from forgellm.engines.process_group import is_of_torchrun, mlx_rank

    instead = "give --nproc-per-node (and --nnodes, --rdzv-endpoint) without it"
    if is_of_torchrun():
        raise InvalidRequest(f"forgellm train starts what torchrun would: {instead}")
    if mlx_rank() is not None and given.keys() & MACHINE_FIELDS:
        raise InvalidRequest(f"mlx.launch says which processes there are: {instead}")


def _train(
    workspace: Workspace,
    recipe: Recipe,
    resumed: Run | None,
    console: Console,
    allow_changed_base: bool,
) -> None:
    from forgellm import supervisor
    from forgellm.cli.foreground import train_here
    from forgellm.cli.summary import print_summary

    if resumed:
        found = resumed
        lock = supervisor.claim_resume(workspace, found, allow_changed_base=allow_changed_base)
    else:
        found, lock = new_run(workspace, recipe)
    console.print(f"Run {found.output_dir}")
    state = train_here(found, lock, resume=bool(resumed), console=console)
    print_summary(found, state, console)


def _trained_along(workspace: Workspace, recipe: Recipe, console: Console) -> bool:
    """Where the recipe's meeting point is another machine: that one writes the run."""
    from forgellm.engines.machines import meeting_at
    from forgellm.training.processes import join

    if recipe.rdzv_endpoint is None or recipe.hosts or recipe.nnodes == 1:
        return False
    numbers = (recipe.nproc_per_node, recipe.nnodes, recipe.max_restarts)
    meeting = meeting_at(recipe.rdzv_endpoint, *numbers)
    if meeting.is_first:
        return False
    console.print(f"Training along; the run is written at {recipe.rdzv_endpoint}")
    join(recipe.engine, meeting, workspace)
    return True


def _shared_anew(run: Run, given: dict[str, Any]) -> Recipe:
    """The recipe of a run to be resumed, kept with what is `given` of machines. Raises ConfigError,
    RunEdited."""
    record = run.record()
    if not given or run.is_alive():
        return record.recipe
    run.require_as_written()
    recipe = parse_recipe({**record.recipe.model_dump(), **_fields_of(given)}, from_text=True)
    run.write_record(record.model_copy(update={"recipe": recipe}))
    return recipe


def recipe_from(config: Path | None, given: dict[str, Any]) -> Recipe:
    """A recipe of a YAML file and flags, the flags first. Raises ConfigError, InvalidRequest."""
    values = _read_yaml(config) if config else {}
    return parse_recipe({**values, **_fields_of(given)}, from_text=True)


def stages_from(config: Path | None, given: dict[str, Any]) -> tuple[str, list[StageRecipe]] | None:
    """A chain's name and recipes, if the file holds `stages`; flags come first in each.

    Raises ConfigError, InvalidRequest.
    """
    values = _read_yaml(config) if config else {}
    if config is None or "stages" not in values:
        return None
    recipes = parse_stages(values, _fields_of(given), from_text=True)
    return str(values.get("chain") or config.stem), recipes


def _fields_of(given: dict[str, Any]) -> dict[str, Any]:
    """What flags with several values stand for. Raises ConfigError."""
    return {name: _value_of(name, value) for name, value in given.items()}


def _value_of(name: str, given: Any) -> Any:
    kinds = _kinds_of(Recipe.model_fields[name].annotation)
    if not isinstance(given, list):
        return given
    if dict in kinds:
        return _mapping_of(name, given)
    if name in _WITH_COMMAS:
        return given
    values = [part.strip() for text in given for part in text.split(",") if part.strip()]
    # A word that stands for a list of its own.
    return values[0] if len(values) == 1 and values[0] in kinds else values


def _mapping_of(name: str, given: list[str]) -> dict[str, str]:
    """Of `ROLE=NAME`, with a comma between several in one text; the names may hold commas too."""
    found: dict[str, str] = {}
    for text in given:
        for part in re.split(r",\s*(?=[a-z]+=)", text):
            key, equals, value = part.partition("=")
            if not equals or not value.strip():
                raise ConfigError.one(name, f"{part[:40]!r} is not of the form ROLE=NAME")
            found[key.strip()] = value.strip()
    return found


def _read_yaml(file: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(file.read_text())
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{file} is not YAML: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InvalidRequest(f"{file} must hold `field: value` lines")
    return values


def new_run(workspace: Workspace, recipe: Recipe) -> Any:
    """The run and its lock; with `queue`, as soon as no other run is active."""
    from forgellm import supervisor
    from forgellm.training.plan import plan_run

    plan = plan_run(recipe, workspace, allow_absolute=True)
    while True:
        try:
            return supervisor.claim_new_run(workspace, recipe, max_seq_length=plan.max_seq_length)
        except TrainingAlreadyRunning:
            if not recipe.queue:
                raise
            time.sleep(_WAIT_SECONDS)


def _metavars(annotation: Any) -> tuple[str, str]:
    """Of the first value of a list or a map, and of those that follow."""
    first = _metavar(annotation)
    return first, "NAME" if "|" in first else first


def _metavar(annotation: Any) -> str:
    """What a flag's help shows for its value."""
    kinds = _kinds_of(annotation)
    if dict in kinds:
        return "ROLE=NAME"
    if words := _words_of(annotation):
        is_open = list in kinds and not kinds.isdisjoint(words)
        return "|".join([*words, "NAME"] if is_open else words)
    return next((shown for kind, shown in ((int, "N"), (float, "X")) if kind in kinds), "TEXT")


def _kinds_of(annotation: Any) -> set[Any]:
    """The types of a field's values without those inside of lists, a word of a choice as itself."""
    if get_origin(annotation) in (list, dict):
        return {get_origin(annotation)}
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    if get_origin(annotation) is Annotated:
        return _kinds_of(get_args(annotation)[0])
    parts = get_args(annotation)
    return set().union(*map(_kinds_of, parts)) if parts else {annotation}


def _words_of(annotation: Any) -> list[str]:
    """The words of a choice in the order in which the schema has them."""
    if get_origin(annotation) is Literal:
        return [*get_args(annotation)]
    return [word for part in get_args(annotation) for word in _words_of(part)]
