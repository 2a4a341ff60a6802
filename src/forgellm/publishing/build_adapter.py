"""What the publishing process does to export a checkpoint's adapter alone."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

from forgellm import __version__
from forgellm.atomic import file_lock, whole_folder
from forgellm.catalog import ModelFolder
from forgellm.child import OnProgress
from forgellm.data.chat.turn_ends import turn_end_ids
from forgellm.data.tokenizer import CHAT_TEMPLATE_NAME, Tokenizer
from forgellm.engines.adapter import LoraSettings, settings_beside
from forgellm.engines.merged_model import model_of, require_own_settings, require_room
from forgellm.paths import Workspace
from forgellm.publishing.adapter_exports import write_gguf_lora, write_mlx, write_peft
from forgellm.publishing.artefact import write_lineage
from forgellm.publishing.card_head import card_head, licence_shown
from forgellm.publishing.exports import check_export
from forgellm.publishing.sources import id_of, name_of, shown_name
from forgellm.runs.checkpoints import verify, weights_sha256
from forgellm.runs.lineage import start_checkpoint
from forgellm.runs.store import Run
from forgellm.schema.exports import ExportRequest

_CARD = """\
{head}# {name}

The {method} adapter (rank {rank}, alpha {alpha:g}) of `{checkpoint}` for `{base}`, {size_mb:.3f} MB,
written by ForgeLLM {version} as {what}. It is of use only beside the model that it was trained on.
{merged}
## Use it

{usage}
## Made by

```bash
{command}
```

The licence of the base model ({licence}) applies.
"""
_MERGED = """
That model was itself made of an earlier run and is in no hub. Publish this checkpoint instead, for
a model that stands alone: `forgellm publish --run {run} --iteration {iteration}`.
"""
_TURNS = """
Its conversations were read with a chat template that is not the base model's: `chat_template.jinja`.
Give it to the program that runs the adapter, and let answers end at the tokens {ids}, which the
files of `{base}` do not all name: `eos_token_id` of transformers' `generate`, `{tokens}` of mlx_lm.
"""
_WHAT = {
    "peft": "PEFT reads it",
    "mlx": "mlx-lm reads it",
    "gguf-lora": "a GGUF file for llama.cpp",
}
_USAGE = {
    "peft": """\
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{base}")  # or the folder that holds it
model = PeftModel.from_pretrained(model, "path/to/this/folder")
```
""",
    "mlx": """\
```bash
mlx_lm.generate --model {base} --adapter-path path/to/this/folder --prompt "Once upon a time"
```
""",
    "gguf-lora": """\
With a GGUF file of the base model, such as `forgellm models export {base} --format gguf` writes:

```bash
llama-cli -m BASE.gguf --lora {file}
```

For Ollama, add `ADAPTER ./{file}` to the base model's Modelfile.
""",
}


def build_adapter(
    wanted: ExportRequest, workspace: Workspace, on_progress: OnProgress
) -> dict[str, Any]:
    """See `exports.export_model`. Raises ForgeError."""
    on_progress(0.0, "checking the checkpoint")
    run, checkpoint = start_checkpoint(wanted.model_name, workspace)
    exported = workspace.exported_models
    with file_lock(exported / ".publish.lock"):
        target = check_export(wanted, workspace)
        verify(checkpoint)
        require_own_settings(run, checkpoint.weights)
        record = run.record()
        allow = wanted.allow_changed_base
        base = model_of(record, workspace, record.recipe.engine, allow_changed=allow)
        require_room(exported, checkpoint.weights.stat().st_size, "The adapter takes")
        with whole_folder(target, "the adapter") as folder:
            on_progress(0.3, "writing the adapter")
            files = _write(wanted.format, checkpoint.weights, base, run.name, folder)
            turns = _carry_turns(run, base, folder)
            verify(checkpoint)  # it may have been replaced while it was read
            on_progress(0.9, "describing it")
            command = ["forgellm", "models", "export", id_of(run, checkpoint)]
            command += ["--format", wanted.format]
            facts = {
                "checkpoint": name_of(run, checkpoint),
                "base_model": shown_name(base.name),
                "files": files,
                "size_mb": round(sum((folder / name).stat().st_size for name in files) / 1e6, 3),
            }
            publish = {"run": run.name, "iteration": checkpoint.iteration}
            merged = _MERGED.format(**publish) if base.name.startswith("merged/") else ""
            settings = settings_beside(checkpoint.weights)
            card = _card(wanted.format, base, settings, command, facts, merged + turns)
            (folder / "README.md").write_text(card, "utf-8")
            write_lineage(
                folder, wanted.format, [id_of(run, checkpoint)], command,
                base_model=facts["base_model"], weights_sha256=weights_sha256(checkpoint),
            )  # fmt: skip
    return {"name": target.name, "path": workspace.relative(target), **facts}


def _write(kind: str, weights: Path, base: ModelFolder, name: str, out: Path) -> list[str]:
    """Raises CheckpointCorrupt, UnsupportedModel."""
    if kind == "peft":
        return write_peft(weights, shown_name(base.name), base, out)
    if kind == "mlx":
        return write_mlx(weights, shown_name(base.name), out)
    return write_gguf_lora(weights, name, base, out)


def _carry_turns(run: Run, base: ModelFolder, out: Path) -> str:
    """The run's own chat template beside the adapter, where it has one, and what to say of it."""
    template = run.folder / CHAT_TEMPLATE_NAME
    if not template.is_file():
        return ""
    shutil.copyfile(template, out / CHAT_TEMPLATE_NAME)
    ends = turn_end_ids(Tokenizer.load(base.path, run.folder))
    ids = ", ".join(map(str, ends.values())) or "none"
    tokens = " ".join(f'--extra-eos-token "{token}"' for token in ends)
    return _TURNS.format(base=shown_name(base.name), ids=ids, tokens=tokens)


def _card(
    kind: str,
    base: ModelFolder,
    settings: LoraSettings,
    command: list[str],
    facts: dict[str, Any],
    merged: str,
) -> str:
    """Markdown with the YAML head that the hub reads."""
    method = "dora" if settings.dora else "lora"
    return _CARD.format(
        head=card_head({"gguf-lora": "gguf"}.get(kind, kind), base, [method]),
        name=facts["checkpoint"].rsplit("/", 1)[-1],
        method={"dora": "DoRA", "lora": "LoRA"}[method],
        rank=settings.rank,
        alpha=settings.alpha,
        checkpoint=facts["checkpoint"],
        base=facts["base_model"],
        size_mb=facts["size_mb"],
        version=__version__,
        what=_WHAT[kind],
        merged=merged,
        usage=_USAGE[kind].format(base=facts["base_model"], file=facts["files"][0]),
        command=shlex.join(command),
        licence=licence_shown(base),
    )
