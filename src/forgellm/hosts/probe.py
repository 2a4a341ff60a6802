"""What this machine has for training: asked of it by `forgellm hosts check` on another.

    python -P -m forgellm.hosts.probe --engine torch [--model M] [--dataset D] [--connect ADDR PORT]

Prints one JSON object, a ProbeReport. It works in FORGELLM_WORKSPACE.
"""

from __future__ import annotations

import argparse
import sys

from forgellm import __version__, hardware
from forgellm.catalog import find_model
from forgellm.catalog.fingerprint import model_fingerprint
from forgellm.data.datasets import find_dataset
from forgellm.data.documents import dataset_fingerprint
from forgellm.errors import ForgeError
from forgellm.hosts.network import word_at
from forgellm.paths import Workspace, find_workspace
from forgellm.schema.hosts import Held, ProbeReport


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m forgellm.hosts.probe")
    parser.add_argument("--engine", required=True)
    parser.add_argument("--model")
    parser.add_argument("--dataset")
    parser.add_argument("--connect", nargs=2, metavar=("ADDRESS", "PORT"))
    args = parser.parse_args()
    report = look(find_workspace(), args.engine, args.model, args.dataset)
    if args.connect:
        address, port = args.connect
        try:
            report.greeting = word_at(address, int(port))
        except OSError as error:
            report.connect_problem = error.strerror or str(error)
    print(report.model_dump_json(), flush=True)
    return 0


def look(workspace: Workspace, engine: str, model: str | None, dataset: str | None) -> ProbeReport:
    """All but the network."""
    is_installed = hardware.engine_is_installed(engine)
    return ProbeReport(
        forgellm_version=__version__,
        engine=engine,
        engine_version=(hardware.package_version(engine) or "unknown") if is_installed else None,
        gpus=list(hardware.gpu_names()),
        num_cores=hardware.num_cores(),
        memory_available_bytes=hardware.memory_available_bytes(),
        disk_free_bytes=hardware.disk_free_bytes(workspace.root),
        model=_held_model(workspace, model) if model else None,
        dataset=_held_dataset(workspace, dataset) if dataset else None,
        greeting=None,
        connect_problem=None,
    )


def _held_model(workspace: Workspace, name: str) -> Held:
    try:
        folder = find_model(name, workspace, allow_absolute=True).path
        return Held(fingerprint=model_fingerprint(folder), problem=None)
    except ForgeError as error:
        return Held(fingerprint=None, problem=_sentence(error))
    except OSError as error:
        return Held(fingerprint=None, problem=f"cannot be read: {error.strerror}")


def _held_dataset(workspace: Workspace, name: str) -> Held:
    try:
        return Held(fingerprint=dataset_fingerprint(find_dataset(workspace, name)), problem=None)
    except ForgeError as error:
        return Held(fingerprint=None, problem=_sentence(error))


def _sentence(error: ForgeError) -> str:
    places = error.details.get("searched_paths")
    return error.message + (f" in {', '.join(places)}" if places else "")


if __name__ == "__main__":
    sys.exit(main())
