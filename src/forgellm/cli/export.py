"""`forgellm models export`: a model in a format for other programs."""

from __future__ import annotations

import argparse
from typing import Any

from forgellm.cli.model_choice import add_changed_base_flag
from forgellm.paths import Workspace


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    from forgellm.schema.exports import ADAPTER_FORMATS

    command = commands.add_parser(
        "export",
        help="write a model in another format to models/exported/",
        description="Write a model as a GGUF file for llama.cpp and Ollama, read it back, and "
        "compare it with the model; or a checkpoint's adapter alone for PEFT, mlx-lm or llama.cpp. "
        "To export a run as a whole model, publish a checkpoint of it first.",
    )
    command.add_argument(
        "model",
        metavar="MODEL",
        help="what it is loaded by; for an adapter RUN (its best checkpoint) or RUN@ITERATION",
    )
    command.add_argument("--format", choices=("gguf", *ADAPTER_FORMATS), required=True)
    command.add_argument(
        "--type",
        default="Q8_0",
        metavar="TYPE",
        help="what a gguf model's weights are stored in (default: Q8_0): F32, F16, BF16, Q8_0, Q5_1, Q4_0 ...; "
        "K-quants such as Q4_K_M need llama.cpp's llama-quantize",
    )
    add_changed_base_flag(command)
    command.add_argument("--json", action="store_true", help="machine-readable output")


def run(args: argparse.Namespace, workspace: Workspace) -> int:
    """Raises ForgeError."""
    from forgellm.cli.model_choice import checked
    from forgellm.cli.progress import progress_bar
    from forgellm.publishing.exports import export_model
    from forgellm.schema.exports import ExportRequest

    request = checked(
        ExportRequest,
        model_name=args.model,
        format=args.format,
        type=args.type.upper(),
        allow_changed_base=args.allow_changed_base,
    )
    with progress_bar() as on_progress:
        made = export_model(request, workspace, on_progress)
    if args.json:
        import json

        print(json.dumps(made, indent=2))
        return 0
    if args.format != "gguf":
        print(f"Exported {made['checkpoint']} to {made['path']}/")
        print(f"  {', '.join(made['files'])}: {made['size_mb']:.3f} MB, for {made['base_model']}")
        return 0
    figures = made["verification"]
    print(f"Exported to {made['path']}/")
    print(f"  {made['file']}: {made['size_gb']:.3f} GB, the model {made['model_size_gb']:.3f} GB")
    print(
        f"  agrees with the model on {100 * figures['top1_agreement']:.1f} % of "
        f"{figures['positions']} tokens; mean divergence {figures['mean_kl']:.2g} nats"
    )
    print(f"  perplexity {made['perplexity']}, of the model {made['model_perplexity']}")
    return 0
