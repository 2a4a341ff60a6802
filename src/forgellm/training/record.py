"""What a run's folder says of it: the recipe as it was resolved, what its weights need, how it ended."""

from __future__ import annotations

import logging
import shutil

from forgellm import __version__
from forgellm.atomic import storage_errors, write_json
from forgellm.data.tokenizer import CHAT_TEMPLATE_NAME
from forgellm.errors import ForgeError
from forgellm.paths import iso_utc
from forgellm.runs.lineage import merged_ancestor
from forgellm.runs.store import Run
from forgellm.schema.run import BaseFile, Phase, RunRecord
from forgellm.training.ready import Ready
from forgellm.training.reference import write_reference
from forgellm.training.start import Start

log = logging.getLogger(__name__)


def completed(
    record: RunRecord, ready: Ready, base_files: dict[str, BaseFile], companions: dict[str, str]
) -> RunRecord:
    """`run.json` as it stays: everything that decided the run."""
    plan, data = ready.plan, ready.data
    info, model = ready.engine.info, plan.model
    found = {
        "max_seq_length": plan.max_seq_length,
        "parallelism": record.recipe.parallelism,  # auto may mean another where it is resumed
    }
    return record.model_copy(
        update={
            "recipe": plan.recipe.model_copy(update=found),
            "engine": info.engine,
            "device": info.device,
            "dtype": info.dtype,
            "dtype_reason": info.dtype_reason,
            "model": {
                "name": model.name,
                "kind": model.kind,
                "architecture": model.facts.architecture,
                "num_parameters": info.num_parameters,
                "num_trainable": info.num_trainable,
                "context_length": info.context_length,
            },
            "base_files": base_files,
            "companions": companions,
            "data": data.summary,
            "memory": ready.measured,
            "versions": {"forgellm": __version__, **info.versions},
            "warnings": ready.warnings,
        }
    )


def write_companions(run: Run, start: Start, ready: Ready) -> None:
    """What belongs to the run's weights: how to attach them, the template they know, and what
    they are compared with."""
    if (config := ready.engine.adapter_config()) is not None:
        if merged_ancestor(start.lineage):
            config["base_model_name_or_path"] = ready.plan.model.name
        write_json(run.folder / "adapter_config.json", config)
    if (reference := ready.data.reference) is not None:
        write_reference(run.folder, reference)
    with storage_errors(CHAT_TEMPLATE_NAME):
        inherited = start.template_folder and start.template_folder / CHAT_TEMPLATE_NAME
        if template := ready.data.summary["chat_template"]:
            (run.folder / CHAT_TEMPLATE_NAME).write_text(template, encoding="utf-8")
        elif inherited and inherited.is_file():
            shutil.copyfile(inherited, run.folder / CHAT_TEMPLATE_NAME)


def write_end(run: Run, phase: Phase, error: ForgeError | None = None) -> None:
    """How a run ended that its loop could not end."""
    update = {
        "phase": phase,
        "error": error.to_dict() if error else None,
        "eta_minutes": None,
        "heartbeat": iso_utc(),
    }
    try:
        run.write_state(run.written_state().model_copy(update=update))
    except ForgeError:
        log.exception("the end could not be written to the run's state")
