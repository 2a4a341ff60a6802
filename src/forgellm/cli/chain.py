"""`forgellm train --config` with a file of stages: one after another in this terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forgellm.paths import Workspace
from forgellm.schema.chain import EvalRecipe, StageRecipe

if TYPE_CHECKING:
    from rich.console import Console

    from forgellm.runs.chains import Chain
    from forgellm.runs.lock import RunLock
    from forgellm.runs.store import Run
    from forgellm.training.plan import Plan


def train_chain(
    workspace: Workspace, name: str, recipes: list[StageRecipe], console: Console
) -> None:
    """From the first stage that is not complete to the last, or until one is stopped.

    Raises ForgeError: the stage that failed is gone on with by the same command.
    """
    from forgellm.errors import ForgeError
    from forgellm.evaluation.chain_stage import check_eval_stages
    from forgellm.runs.chains import held, open_chain
    from forgellm.training.plan import plan_chain

    with held(workspace):
        chain = open_chain(workspace, name, recipes)
    check_eval_stages(chain, allow_absolute=True)
    plans = plan_chain(chain, allow_absolute=True)
    console.print(f"Chain {name}: {' -> '.join(recipe.training_type for recipe in recipes)}")
    _show_complete(chain, console)
    while (number := chain.first_incomplete()) is not None:
        stage = f"Stage {number + 1} of {len(recipes)}"
        try:
            is_complete = _work_on(chain, number, plans, stage, console)
        except ForgeError:
            console.print(
                f"{stage} ({recipes[number].training_type}) failed. The stages before it are kept;"
            )
            console.print("mend what is wrong and give the same command.")
            raise
        if not is_complete:
            console.print(f"{stage} was stopped. The same command goes on with it.")
            return
    console.print(
        f"Chain {name} is complete. To train it again, give it another name (chain: NAME)"
    )


def _show_complete(chain: Chain, console: Console) -> None:
    from forgellm.cli.evaluate import as_text

    first = chain.first_incomplete()
    for number, stage in enumerate(chain.record.stages[:first]):
        run = chain.run_of(number)
        console.print(f"Stage {number + 1} is complete: {run.output_dir if run else 'eval'}")
        if stage.evaluation and stage.evaluation.result:
            print(as_text(stage.evaluation.result))


def _work_on(
    chain: Chain, number: int, plans: dict[int, Plan], stage: str, console: Console
) -> bool:
    """Train or measure a stage; False if it was stopped."""
    if isinstance(chain.record.stages[number].recipe, EvalRecipe):
        _measure(chain, number, stage, console)
        return True
    return _train(chain, number, plans[number].max_seq_length, stage, console)


def _measure(chain: Chain, number: int, stage: str, console: Console) -> None:
    from forgellm.cli.evaluate import as_text
    from forgellm.evaluation.chain_stage import measure_stage

    console.print(f"{stage} (eval) begins")
    with console.status("measuring") as status:
        found = measure_stage(
            chain, number, lambda fraction, text: status.update(text), allow_absolute=True
        )
    print(as_text(found))


def _train(chain: Chain, number: int, max_seq_length: int, stage: str, console: Console) -> bool:
    from forgellm.cli.foreground import train_here
    from forgellm.cli.summary import print_summary

    run, lock, resume = _claim(chain, number, max_seq_length)
    what = "goes on" if resume else "begins"
    console.print(f"{stage} ({chain.record.stages[number].recipe.training_type}) {what}")
    console.print(f"Run {run.output_dir}")
    state = train_here(run, lock, resume=resume, console=console)
    print_summary(run, state, console)
    return state.phase == "completed"


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
