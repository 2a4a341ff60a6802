"""The README of a published model: what it is, what it learned from, how well, how to run it."""

from __future__ import annotations

from typing import Any

from forgellm import __version__
from forgellm.catalog import ModelFolder
from forgellm.publishing.card_figures import before_and_after, ranking, table
from forgellm.publishing.card_head import card_head, licence_shown
from forgellm.publishing.dashboard_png import DASHBOARD_NAME
from forgellm.publishing.dashboard_story import Story, compact, duration, method_of, read_story
from forgellm.runs.checkpoints import Checkpoint
from forgellm.runs.store import Run
from forgellm.schema.run import Ancestor, RunRecord

_TAGS = {
    "cpt": "continued-pretraining",
    "ift": "instruction-tuning",
    "dpo": "dpo",
    "orpo": "orpo",
}
_RUN = """\
## Run it

In the ForgeLLM workspace that holds it:

```bash
forgellm cli generate --model published/{name}
```

Anywhere else, as any model in Hugging Face layout:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=60)[0]))
```
"""


def model_card(
    run: Run,
    descent: list[Ancestor],
    checkpoint: Checkpoint,
    base: ModelFolder,
    name: str,
    verification: dict[str, Any],
    recipe: str,
) -> str:
    """Markdown with the YAML head that the hub reads. `name` is the folder's, `recipe` is YAML.

    `descent` are the checkpoints it was made of, its own last.
    """
    story = read_story(run)
    base_name = base.name.rstrip("/").rsplit("/", 1)[-1]
    parts = [
        card_head("transformers", base, [_TAGS[story.record.recipe.training_type]]),
        f"# {base_name}, trained on {story.record.recipe.dataset}\n",
        f"The checkpoint of iteration {checkpoint.iteration:,} of the run `{run.name}`, merged "
        f"into its base model with ForgeLLM {__version__}.\n",
        _table(_facts(story, checkpoint, base)),
        f"![Training dashboard]({DASHBOARD_NAME})\n",
        *_descent(base_name, descent),
        "## Data\n\n" + _table(_data(story.record.data)),
        ranking(run, checkpoint),
        before_and_after(run, checkpoint),
        "## Is it the checkpoint?\n\n" + _comparison(verification),
        _RUN.replace("{name}", name),
        _again(story.record, recipe),
        f"## Limits\n\nThe base model's licence ({licence_shown(base)}) applies. What the base model "
        "gets wrong, this one may get wrong too; text it was trained on can appear in its answers.\n",
    ]
    return "\n".join(parts)


def _facts(story: Story, checkpoint: Checkpoint, base: ModelFolder) -> list[tuple[str, str]]:
    loss = checkpoint.validation_loss
    unit = "" if story.record.recipe.learns_preferences else " nats per token"
    rows = [
        ("Base model", base.name.rsplit("/", 1)[-1] if base.name[:1] == "/" else base.name),
        (
            "Architecture",
            f"{base.facts.architecture}, {compact(base.facts.num_parameters)} parameters",
        ),
        ("Method", method_of(story.record)),
        ("Iteration", f"{checkpoint.iteration:,} of {story.record.recipe.max_iterations:,}"),
        ("Validation loss here", "not measured" if loss is None else f"{loss:.4f}{unit}"),
    ]
    if story.best:
        iteration, best = story.best[0]
        rows.append(("Best validation loss of the run", f"{best:.4f} at iteration {iteration:,}"))
    tokens = checkpoint.position().get("trained_tokens")
    rows.append(("Tokens trained on", f"{tokens:,}" if isinstance(tokens, int) else "unknown"))
    rows.append(("Training time of the run", duration(story.state.training_seconds)))
    return rows


def _descent(base_name: str, descent: list[Ancestor]) -> list[str]:
    """Where more than one run took part: which, in order."""
    if len(descent) == 1:
        return []
    steps = [
        f"{number}. {_TAGS.get(item.training_type, item.training_type)} on {item.dataset}: "
        f"iteration {item.iteration:,} of `{item.name}` (weights sha256 `{item.weights_sha256}`)\n"
        for number, item in enumerate(descent, 1)
    ]
    return [f"## Lineage\n\n{base_name}, then:\n\n{''.join(steps)}"]


def _data(data: dict[str, Any]) -> list[tuple[str, str]]:
    replay = data.get("replay_source")
    ratio = data.get("achieved_mixture_ratio")
    return [
        ("Documents", f"{data.get('documents', 0):,} in {data.get('files', 0):,} files"),
        ("Tokens to train on", f"{data.get('train_tokens', 0):,}"),
        ("Tokens held out for validation", f"{data.get('validation_tokens', 0):,}"),
        ("Passes over the data in the whole run", str(data.get("epochs", "unknown"))),
        ("Share of the dataset", "unknown" if ratio is None else f"{100 * ratio:.1f} %"),
        ("The rest", f"replay of general text ({replay})" if replay else "none"),
        ("Fingerprint", f"`{data.get('fingerprint', 'unknown')}`"),
    ]


def _again(record: RunRecord, recipe: str) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in record.versions.items() if value)
    return (
        "## Make it again\n\nWhere the run is: "
        f"`forgellm reproduce {record.training_id}`. Anywhere else, with the data of the "
        "fingerprint above: `forgellm train --config recipe.yaml`. It was trained with "
        f"{versions or 'unknown versions'}, in {record.dtype or 'an unknown type'} on "
        f"{record.device or 'an unknown device'}.\n\n```yaml\n{recipe}```\n"
    )


def _comparison(verification: dict[str, Any]) -> str:
    return (
        "The weights were read back from this folder and compared with the base model and its "
        f"checkpoint, token by token on {verification['positions']} positions of general text "
        f"(in {verification['dtype']}): the most likely token is the same on "
        f"{100 * verification['top1_agreement']:.2f} % of them, and the mean divergence "
        f"is {verification['mean_kl']:.2g} nats.\n"
    )


def _table(rows: list[tuple[str, str]]) -> str:
    return table(("", ""), rows)
