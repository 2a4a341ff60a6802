"""`forgellm cli info`: what a model and an adapter are, from their small files and headers alone."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgellm.cli.model_choice import ModelChoice, add_model_flags
from forgellm.errors import UnsupportedModel
from forgellm.paths import find_workspace

if TYPE_CHECKING:
    from forgellm.catalog import ModelFacts

_CONFIG = "adapter_config.json"
_SHORT_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float64": "fp64"}
_CLASS_SUFFIX = re.compile(r"(For[A-Z]\w*|LMHeadModel|Model)$")


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "info",
        help="what a model and an adapter are",
        description="Show facts of a model and of an adapter. No weights are loaded.",
    )
    add_model_flags(parser)
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Raises ForgeError."""
    from forgellm.catalog import read_facts
    from forgellm.catalog.safety import check_model_files

    workspace = find_workspace(args.workspace)
    choice = ModelChoice.of_flags(workspace, args.model, args.adapter_path)
    source = choice.find()
    facts = read_facts(source.model, check_model_files(source.model))
    model = _model_info(choice.model_name, facts)
    adapter = _adapter_info(args.adapter_path, source.adapter) if source.adapter else None
    if args.json:
        import json

        print(json.dumps({"success": True, "model": model, "adapter": adapter}, indent=2))
    else:
        from forgellm.cli.terminal_text import clean

        print(clean(_as_text(model, adapter)))
    return 0


def _model_info(name: str, facts: ModelFacts) -> dict[str, Any]:
    plain = _SHORT_DTYPES.get(facts.dtype, facts.dtype)
    return {
        "name": name,
        "type": facts.type,
        "architecture": _CLASS_SUFFIX.sub("", facts.architecture) or facts.architecture,
        "num_parameters": facts.num_parameters,
        "quantization": (facts.quantization or plain).removeprefix("mlx "),
        "context_length": facts.context_length,
        "size_gb": round(facts.size_bytes / 1e9, 3),
        "dtype": facts.dtype,
        "num_layers": facts.num_layers,
        "hidden_size": facts.hidden_size,
        "vocab_size": facts.vocab_size,
    }


def _adapter_info(path: str, weights: Path) -> dict[str, Any]:
    """What `adapter_config.json` beside the weights says, in mlx-lm's keys or in PEFT's.

    Raises UnsupportedModel if it cannot be read.
    """
    if weights.is_dir():
        return {"path": path, "type": "full", "rank": None, "alpha": None, "target_modules": []}
    from forgellm.catalog.safety import MAX_CONFIG_BYTES, read_json

    config = read_json(weights.parent / _CONFIG, MAX_CONFIG_BYTES)
    parameters = config.get("lora_parameters") or {}
    try:
        rank = int(config.get("r") or parameters["rank"])
        alpha = float(config.get("lora_alpha") or parameters["scale"] * rank)
        targets = config.get("target_modules") or parameters.get("keys") or []
        names = sorted({str(name).rsplit(".", 1)[-1] for name in targets})
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UnsupportedModel(f"{_CONFIG} beside the adapter does not describe one") from None
    is_dora = config.get("use_dora") is True or config.get("fine_tune_type") == "dora"
    return {
        "path": path,
        "type": "dora" if is_dora else "lora",
        "rank": rank,
        "alpha": alpha,
        "target_modules": names,
    }


def _as_text(model: dict[str, Any], adapter: dict[str, Any] | None) -> str:
    context = model["context_length"]
    lines = [
        "Model Information:",
        f"  Name: {model['name']}",
        f"  Type: {model['type'].capitalize()} Model",
        f"  Architecture: {model['architecture']}",
        f"  Parameters: ~{short_count(model['num_parameters'])}",
        f"  Quantization: {model['quantization']}",
        f"  Context Length: {f'{context:,} tokens' if context else 'unknown'}",
    ]
    if adapter is None:
        return "\n".join(lines)
    lines += ["", "Adapter Information:", f"  Path: {adapter['path']}"]
    if adapter["type"] == "full":
        return "\n".join([*lines, "  Type: Full Checkpoint"])
    kind = {"lora": "LoRA", "dora": "DoRA"}[adapter["type"]]
    lines += [
        f"  Type: {kind} Adapter",
        f"  Rank: {adapter['rank']}",
        f"  Alpha: {adapter['alpha']:g}",
        f"  Target Modules: {', '.join(adapter['target_modules'])}",
    ]
    return "\n".join(lines)


def short_count(count: int) -> str:
    """A number as model names show it: 134,515,008 is 135M, 1,543,714,304 is 1.5B."""
    for letter, unit in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= 0.9995 * unit:
            value = count / unit
            return f"{value:.{0 if value >= 9.95 else 1}f}".removesuffix(".0") + letter
    return str(count)
