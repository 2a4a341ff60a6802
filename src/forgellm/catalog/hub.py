"""Brings a model from the hub into the standard Hugging Face cache.

Only safetensors, JSON, tokenizer files, chat templates and the model card are taken. Nothing is
visible before everything is there: blobs first, then the snapshot in one rename, then the ref.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2

from forgellm import __version__
from forgellm.catalog.download import HubFile, download, get_json
from forgellm.catalog.find import cache_folder, is_hub_id
from forgellm.errors import (
    DiskTooSmall,
    HubUnavailable,
    InvalidRequest,
    UnsupportedModel,
)
from forgellm.paths import hub_cache

_WANTED = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._+-]*\.(safetensors|json|jinja|tiktoken)"
    r"|tokenizer\.model|spiece\.model|vocab\.txt|merges\.txt|README\.md"
)
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,200}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_TIMEOUT = httpx2.Timeout(30.0, connect=10.0)

OnProgress = Callable[[int, int], None]


def pull(repo_id: str, revision: str = "main", on_progress: OnProgress | None = None) -> Path:
    """The snapshot folder of `repo_id`, downloaded as far as it is not here yet.

    `on_progress` is called with the bytes that are here and their final number. Raises
    ModelNotFound, InvalidRequest (gated), HubUnavailable, UnsupportedModel, DiskTooSmall.
    """
    if not is_hub_id(repo_id) or ".." in revision or not _REVISION.fullmatch(revision):
        raise InvalidRequest(
            f"{repo_id!r} at {revision!r} is not a model on the hub",
            suggestion="Give its id, such as HuggingFaceTB/SmolLM2-135M-Instruct.",
        )
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    with httpx2.Client(headers=_headers(), timeout=_TIMEOUT, follow_redirects=True) as client:
        url = f"{endpoint}/api/models/{repo_id}/revision/{quote(revision, safe='')}?blobs=true"
        commit, files = _read_listing(get_json(client, url, repo_id))
        repo = cache_folder(repo_id)
        (repo / "blobs").mkdir(parents=True, exist_ok=True)
        report = _Progress(repo, files, on_progress)
        _check_space(repo, report)
        for file in files:
            blob = repo / "blobs" / file.digest
            if not _is_here(blob, file):
                url = f"{endpoint}/{repo_id}/resolve/{commit}/{quote(file.name)}"
                download(client, url, repo_id, file, blob, report.add)
    snapshot = _publish(repo, commit, files)
    if revision != commit:
        _write_ref(repo / "refs" / revision, commit)
    return snapshot


def _headers() -> dict[str, str]:
    """With the user's token, which the client drops when a redirect leads to another host."""
    headers = {"User-Agent": f"forgellm/{__version__}"}
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        home = os.environ.get("HF_TOKEN_PATH") or hub_cache().parent / "token"
        try:
            token = Path(home).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            token = ""
    return headers | ({"Authorization": f"Bearer {token}"} if token else {})


def _read_listing(reply: Any) -> tuple[str, list[HubFile]]:
    """The commit and its wanted files. The hub's words become paths here, so forms are strict."""
    try:
        files = [_hub_file(entry) for entry in reply["siblings"] if _is_wanted(entry["rfilename"])]
        commit = reply["sha"]
    except (LookupError, TypeError, ValueError) as error:
        raise HubUnavailable("The hub's answer could not be understood") from error
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise HubUnavailable("The hub's answer could not be understood")
    weights = [file.name for file in files if file.name.endswith(".safetensors")]
    if not weights:
        raise UnsupportedModel(
            "The repository has no safetensors weights",
            suggestion="Look for a version of the model in that format; a GGUF file can be "
            "imported with: forgellm models import FILE.gguf",
        )
    if any(name.startswith("model") for name in weights):
        # Some repositories hold the same weights twice, once in their maker's own layout.
        files = [file for file in files if not file.name.startswith("consolidated")]
    return commit, sorted(files, key=lambda file: (file.size_bytes, file.name))


def _is_wanted(name: str) -> bool:
    return bool(_WANTED.fullmatch(name))


def _hub_file(entry: dict[str, Any]) -> HubFile:
    large = entry.get("lfs")
    digest = large["sha256"] if large else entry["blobId"]
    size = large["size"] if large else entry["size"]
    if not _DIGEST.fullmatch(digest) or type(size) is not int or size < 0:
        raise ValueError("digest or size")
    return HubFile(entry["rfilename"], size, digest)


class _Progress:
    """Counts bytes that are here, from before or now."""

    def __init__(self, repo: Path, files: list[HubFile], on_progress: OnProgress | None) -> None:
        self.total = sum(file.size_bytes for file in files)
        self.done = sum(_bytes_here(repo / "blobs" / file.digest, file) for file in files)
        self._on_progress = on_progress
        self.add(0)

    def add(self, num_bytes: int) -> None:
        self.done += num_bytes
        if self._on_progress is not None:
            self._on_progress(self.done, self.total)


def _is_here(blob: Path, file: HubFile) -> bool:
    return blob.is_file() and blob.stat().st_size == file.size_bytes


def _bytes_here(blob: Path, file: HubFile) -> int:
    if _is_here(blob, file):
        return file.size_bytes
    partial = blob.with_name(blob.name + ".incomplete")
    size = partial.stat().st_size if partial.is_file() else 0
    return size if size <= file.size_bytes else 0


def _check_space(repo: Path, report: _Progress) -> None:
    needed, free = report.total - report.done, shutil.disk_usage(repo).free
    if needed > free:
        raise DiskTooSmall(
            f"The download needs {needed / 1e9:.1f} GB more, but {free / 1e9:.1f} GB are free",
            suggestion="Free disk space, or set HF_HOME to a larger disk.",
        )


def _publish(repo: Path, commit: str, files: list[HubFile]) -> Path:
    snapshot = repo / "snapshots" / commit
    snapshot.parent.mkdir(exist_ok=True)
    if snapshot.is_dir():  # other programs may have brought a part of it
        for file in files:
            if not (snapshot / file.name).exists():
                _link(snapshot / file.name, file)
        return snapshot
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=repo))
    try:
        for file in files:
            _link(draft / file.name, file)
        draft.chmod(0o755)
        draft.rename(snapshot)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return snapshot


def _link(path: Path, file: HubFile) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(Path("../../blobs") / file.digest)


def _write_ref(path: Path, commit: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + f".{os.getpid()}")
    draft.write_text(commit, encoding="ascii")
    draft.replace(path)
