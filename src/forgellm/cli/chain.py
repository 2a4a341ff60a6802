"""`forgellm train --config` with a file of stages: one run after another in this terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forgellm.paths import Workspace
from forgellm.schema.recipe import Recipe

if TYPE_CHECKING:
    from rich.console import Console

    from forgellm.runs.chains import Chain
    from forgellm.runs.lock import RunLock
    from forgellm.runs.store import Run
    from forgellm.schema.run import RunState


def train_chain(workspace: Workspace, name: str, recipes: list[Recipe], console: Console) -> None:
    """From the first stage that is not complete to the last, or until one is stopped.

    Raises ForgeError: the stage that failed is gone on with by the same command.
    """
    from forgellm.cli.summary import print_summary
    from forgellm.errors import ForgeError
    from forgellm.runs.chains import held, open_chain
    from forgellm.training.plan import plan_chain

    with held(workspace):
        chain = open_chain(workspace, name, recipes)
    plans = plan_chain(chain, allow_absolute=True)
    console.print(f"Chain {name}: {' -> '.join(recipe.training_type for recipe in recipes)}")
    _show_complete(chain, console)
    while (number := chain.first_incomplete()) is not None:
        recipe = recipes[number]
        stage = f"Stage {number + 1} of {len(recipes)}"
        try:
            run, state = _train_stage(chain, number, plans[number].max_seq_length, stage, console)
        except ForgeError:
            console.print(
                f"{stage} ({recipe.training_type}) failed. The stages before it are kept;"
            )
            console.print("mend what is wrong and give the same command.")
            raise
        print_summary(run, state, console)
        if state.phase != "completed":
            console.print(f"{stage} was stopped. The same command goes on with it.")
            return
    console.print(
        f"Chain {name} is complete. To train it again, give it another name (chain: NAME)"
    )


def _show_complete(chain: Chain, console: Console) -> None:
    first = chain.first_incomplete()
    for number in range(len(chain.record.stages) if first is None else first):
        run = chain.run_of(number)
        console.print(f"Stage {number + 1} is complete: {run.output_dir if run else ''}")


def _train_stage(
    chain: Chain, number: int, max_seq_length: int, stage: str, console: Console
) -> tuple[Run, RunState]:
    from forgellm.cli.foreground import train_here

    run, lock, resume = _claim(chain, number, max_seq_length)
    what = "goes on" if resume else "begins"
    console.print(f"{stage} ({chain.record.stages[number].recipe.training_type}) {what}")
    console.print(f"Run {run.output_dir}")
    return run, train_here(run, lock, resume=resume, console=console)


def _claim(chain: Chain, number: int, max_seq_length: int) -> tuple[Run, RunLock, bool]:
    from forgellm import supervisor
    from forgellm.runs.chains import held

    with held(chain.workspace):
        run = chain.run_of(number)
        if run is not None:
            lock, resume = supervisor.claim_again(chain.workspace, run)
            return run, lock, resume
        run, lock = supervisor.claim_new_run(
            chain.workspace, chain.recipe_of(number), max_seq_length=max_seq_length
        )
        chain.set_run(number, run)
        return run, lock, False
