"""Bring the page's libraries from npm into `web/static/vendor/`, unchanged, and note their hashes.

    python scripts/vendor_page.py            # what vendor.json lists, in the versions it lists
    python scripts/vendor_page.py preact=11.2.0     # the same, with another version of one package

It needs npm, which checks what it downloads against the registry's own hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VENDOR = Path(__file__).parents[1] / "src" / "forgellm" / "web" / "static" / "vendor"


def main(changes: list[str]) -> None:
    listed = json.loads((VENDOR / "vendor.json").read_text())
    versions = dict(change.split("=", 1) for change in changes)
    with tempfile.TemporaryDirectory() as folder:
        for name, facts in listed.items():
            facts["version"] = versions.get(facts["package"], facts["version"])
            _bring(name, facts, Path(folder))
    (VENDOR / "vendor.json").write_text(json.dumps(listed, indent=2) + "\n")


def _bring(name: str, facts: dict[str, str], folder: Path) -> None:
    with tarfile.open(_packed(f"{facts['package']}@{facts['version']}", folder)) as archive:
        content = _read(archive, facts["source"])
        licence = VENDOR / facts["licence_file"]
        if not licence.exists():
            licence.write_bytes(_read(archive, "LICENSE"))
    (VENDOR / name).write_bytes(content)
    facts["sha384"] = base64.b64encode(hashlib.sha384(content).digest()).decode()


def _packed(package: str, folder: Path) -> Path:
    command = ["npm", "pack", "--json", "--pack-destination", str(folder), package]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    said = json.loads(done.stdout)
    first = said[0] if isinstance(said, list) else next(iter(said.values()))
    return folder / str(first["filename"]).replace("@", "").replace("/", "-")


def _read(archive: tarfile.TarFile, path: str) -> bytes:
    member = archive.extractfile(f"package/{path}")
    assert member is not None, f"{path} is no file"
    return member.read()


if __name__ == "__main__":
    main(sys.argv[1:])
