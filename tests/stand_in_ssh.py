"""A program `ssh` that runs the command on this machine, and a workspace that other machines copy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

_SSH = """#!/bin/sh
while [ $# -gt 0 ]; do
    case "$1" in
        -G) echo "hostname 127.0.0.1"; exit 0 ;;
        -T) shift ;;
        -o | -p | -l) shift 2 ;;
        --) shift; break ;;
    esac
done
case "$1" in
    nowhere) echo "ssh: Could not resolve hostname nowhere: unknown" >&2; exit 255 ;;
esac
shift
echo "Welcome. Python is installed here."
exec sh -c "$*"
"""


def write_program(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)
    return file


def write_ssh(folder: Path) -> Path:
    """Into a folder to be put first on the path."""
    write_program(folder / "ssh", _SSH)
    return folder


def build_light_workspace(root: Path) -> Path:
    """`models/base/small`, weights of noise that no engine loads, and `dataset/notes`."""
    model = root / "models" / "base" / "small"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file({"a.weight": np.ones((8, 8), np.float32)}, model / "model.safetensors")
    notes = root / "dataset" / "notes"
    notes.mkdir(parents=True)
    (notes / "one.txt").write_text("The lamp keeper counts eleven boats.\n")
    return root
