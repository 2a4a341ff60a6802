"""Tries the smallest model of each architecture with both engines and writes the table in docs/models.md:
`.venv/bin/python scripts/architecture_table.py`. With names, prints what becomes of these alone.

The models run in a child process for each engine, which is started again behind one that ends it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "models.md"
ENGINES = ("torch", "mlx")
WAYS = ("lora", "full", "answers", "published")
_BEGIN, _END = "<!-- begin tried: architectures -->", "<!-- end tried -->"

Outcome = dict[str, dict[str, str]]  # engine -> way -> "yes", or why not


def outcomes(names: list[str]) -> dict[str, Outcome]:
    """What becomes of each architecture, tried now."""
    found: dict[str, Outcome] = {name: {} for name in names}
    for engine in ENGINES:
        for name, ways in _tried(engine, names):
            found[name][engine] = ways
    return found


def _tried(engine: str, names: list[str]) -> list[tuple[str, dict[str, str]]]:
    found: list[tuple[str, dict[str, str]]] = []
    while len(found) < len(names):
        rest = names[len(found) :]
        child = subprocess.run(
            [sys.executable, __file__, "--child", engine, *rest],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        lines = [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]
        found += [(rest[number], line) for number, line in enumerate(lines)]
        if len(lines) < len(rest):
            found.append((rest[len(lines)], dict.fromkeys(WAYS, "it ends the process")))
    return found


def _child(engine: str, names: list[str]) -> None:
    """A line of JSON for each name."""
    import warnings

    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in names:
        with tempfile.TemporaryDirectory() as temporary:
            print(json.dumps(_tried_here(engine, name, Path(temporary))), flush=True)


def _tried_here(engine: str, name: str, work: Path) -> dict[str, str]:
    sys.path.insert(0, str(ROOT / "tests"))
    from architecture_checks import check_answers, check_publishing, check_training
    from architectures import build_architecture

    folder = build_architecture(work / "model", name)
    checks: dict[str, Callable[[], Any]] = {
        "lora": lambda: check_training(engine, folder),
        "full": lambda: check_training(engine, folder, fine_tune_type="full"),
        "answers": lambda: check_answers(engine, folder),
        "published": lambda: _both(check_publishing, engine, folder, work),
    }
    return {way: _outcome(check) for way, check in checks.items()}


def _both(check: Callable[..., None], engine: str, folder: Path, work: Path) -> None:
    """An adapter, and all weights."""
    for kind in ("lora", "full"):
        (work / kind).mkdir()
        check(engine, folder, work / kind, fine_tune_type=kind)


def _outcome(check: Callable[[], Any]) -> str:
    from forgellm.errors import ForgeError

    try:
        check()
    except ForgeError as error:
        return f"{error}".split("\n")[0]
    except AssertionError as error:
        return f"wrong: {error}".split("\n")[0]
    except Exception as error:
        return f"fails: {type(error).__name__}: {error}".split("\n")[0]
    return "yes"


def table_of(found: dict[str, Outcome]) -> str:
    """A Markdown table, and below it the reasons of what is not."""
    lines = [
        "| architecture | torch: LoRA | full | answers | published | MLX: LoRA | full | answers | published |",
        "| --- | " + " | ".join([":---:"] * len(ENGINES) * len(WAYS)) + " |",
    ]
    reasons: dict[str, list[str]] = {}
    for name, outcome in sorted(found.items()):
        cells = [outcome[engine][way] for engine in ENGINES for way in WAYS]
        lines.append(
            f"| {name} | " + " | ".join("yes" if c == "yes" else "no" for c in cells) + " |"
        )
        for engine in ENGINES:
            for why in dict.fromkeys(outcome[engine][way] for way in WAYS):
                if why != "yes":
                    reasons.setdefault(f"{engine}: {_plain(why)}", []).append(name)
    lines += ["", "Why not:", ""]
    lines += [f"- {why}: {', '.join(names)}" for why, names in sorted(reasons.items())]
    return "\n".join(lines)


def _plain(why: str) -> str:
    """A reason without what differs between machines or is a figure of chance."""
    import re

    if re.search(r"Model type .* not supported", why):
        return "mlx-lm has no such model"
    if "missing" in why and "positional argument" in why:
        return "mlx-lm wants fields that config.json has not as transformers 5 writes it; older may"
    why = re.sub(r"(they lack|place for:|tensor for:?) .*", r"\1 some weights", why)
    why = re.sub(r"have no model[^,]*", "have not some weights", why)
    why = re.sub(r"[-\d.]*\d+\.\d+(e-?\d+)?", "N", why)
    why = re.sub(r" \((\[|'PackedCache').*\)", "", why)
    why = re.sub(r"\[[^\]]*\]", "[...]", why)
    return re.sub(r"\b\w+(ForCausalLM|LMHeadModel)\b", "the model", why).rstrip(".")[:200]


def table_in(text: str) -> str:
    return text.split(_BEGIN)[1].split(_END)[0].strip()


def main(names: list[str]) -> None:
    if names and names[0] == "--child":
        _child(names[1], names[2:])
        return
    if names:
        print(json.dumps(outcomes(names), indent=2))
        return
    sys.path.insert(0, str(ROOT / "tests"))
    from architectures import CONFIGS

    table = table_of(outcomes(sorted(CONFIGS)))
    before, rest = DOCS.read_text("utf-8").split(_BEGIN)
    after = rest.split(_END)[1]
    DOCS.write_text(f"{before}{_BEGIN}\n{table}\n{_END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
