"""One file from the hub to disk: continued where it stopped, and kept only if its hash is right."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import httpx2

from forgellm.errors import (
    Conflict,
    DiskTooSmall,
    HubUnavailable,
    InvalidRequest,
    ModelNotFound,
)

# Waited after the first, second, ... attempt in a row that brought nothing.
RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0)
_CONTINUE = "Run the same command again: the download continues where it stopped."
_ABSENT = frozenset({"RepoNotFound", "RevisionNotFound", "EntryNotFound"})


@dataclass(frozen=True)
class HubFile:
    """A file of a repository. `digest` is sha256 for large files, git's blob sha1 for small ones,
    and names the file in the cache's `blobs/`."""

    name: str
    size_bytes: int
    digest: str


class _NoProgress(Exception):
    """This attempt brought nothing new; another may."""


def download(
    client: httpx2.Client,
    url: str,
    repo_id: str,
    file: HubFile,
    blob: Path,
    on_bytes: Callable[[int], None],
) -> None:
    """Bring `blob` from `url`. What has arrived is kept in `<blob>.incomplete` if this fails.

    Raises HubUnavailable, ModelNotFound, DiskTooSmall, or Conflict if another process is at it.
    """
    partial = blob.with_name(blob.name + ".incomplete")
    with _locked(partial) as output:
        if output.seek(0, os.SEEK_END) > file.size_bytes:
            _restart(output)
        failures = 0
        while (before := output.seek(0, os.SEEK_END)) < file.size_bytes:
            try:
                _fetch_rest(client, url, repo_id, file, output, on_bytes)
            except (httpx2.TransportError, _NoProgress) as error:
                failures = 0 if output.tell() > before else failures + 1
                if failures > len(RETRY_SECONDS):
                    raise HubUnavailable(
                        f"The hub stopped answering while sending {file.name}", suggestion=_CONTINUE
                    ) from error
                time.sleep(RETRY_SECONDS[max(0, failures - 1)])
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise DiskTooSmall(
                        f"The disk became full while downloading {file.name}",
                        suggestion="Free disk space. " + _CONTINUE,
                    ) from error
                raise
        output.flush()
        os.fsync(output.fileno())
        if _digest(partial, file) != file.digest:
            partial.unlink()
            raise HubUnavailable(
                f"{file.name} arrived damaged: its hash is not the one the hub states",
                suggestion="Run the same command again.",
            )
        partial.rename(blob)


def check_status(response: httpx2.Response, repo_id: str) -> None:
    """Raises what the hub's status code means; nothing for success."""
    status, code = response.status_code, response.headers.get("X-Error-Code", "")
    if status < 400 or status == 416:
        return
    if status == 404 or code in _ABSENT:
        raise ModelNotFound(
            repo_id,
            [str(response.request.url.host)],
            suggestion="Check the name and the revision; a private model needs HF_TOKEN.",
        )
    if status in (401, 403):
        raise InvalidRequest(
            f"The hub does not let you download {repo_id}: it is private or gated, or the token is wrong",
            suggestion="Accept its terms on the model's page if it has any, then set HF_TOKEN.",
            details={"model_name": repo_id},
        )
    if status == 429 or status >= 500:
        raise _NoProgress(f"status {status}")
    raise HubUnavailable(f"The hub answered with status {status}")


def get_json(client: httpx2.Client, url: str, repo_id: str) -> object:
    """The JSON at `url`, tried a few times. Raises HubUnavailable, ModelNotFound."""
    for wait in (*RETRY_SECONDS, None):
        try:
            response = client.get(url)
            check_status(response, repo_id)
            return response.json()
        except (httpx2.TransportError, _NoProgress) as error:
            if wait is None:
                raise HubUnavailable(
                    "The hub cannot be reached",
                    suggestion="Check the network, or try again later. "
                    "Models already on this machine work without it.",
                ) from error
            time.sleep(wait)
        except (ValueError, httpx2.TooManyRedirects) as error:
            raise HubUnavailable("The hub's answer could not be understood") from error
    raise AssertionError("unreachable")


def _fetch_rest(
    client: httpx2.Client,
    url: str,
    repo_id: str,
    file: HubFile,
    output: FileIO,
    on_bytes: Callable[[int], None],
) -> None:
    have = output.tell()
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with client.stream("GET", url, headers=headers) as response:
        check_status(response, repo_id)
        if response.status_code != 206 or not _starts_at(response, have):
            # The whole file comes, or nothing usable: what we have cannot be continued.
            _restart(output)
            on_bytes(-have)
            if response.status_code != 200:
                raise _NoProgress("range refused")
        for piece in response.iter_raw():
            # A host that sends too much is cut off; the hash then decides.
            piece = piece[: file.size_bytes - output.tell()]
            while piece:
                written = output.write(piece)
                on_bytes(written)
                piece = piece[written:]
    if output.tell() == have:
        raise _NoProgress("nothing came")


def _restart(output: FileIO) -> None:
    output.seek(0)
    output.truncate()


def _starts_at(response: httpx2.Response, position: int) -> bool:
    return str(response.headers.get("Content-Range", "")).startswith(f"bytes {position}-")


@contextmanager
def _locked(partial: Path) -> Iterator[FileIO]:
    with partial.open("ab", buffering=0) as output:
        try:
            fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict("Another process is downloading this model") from None
        yield output


def _digest(path: Path, file: HubFile) -> str:
    """Of what is on disk now, so that earlier parts of an interrupted download count too."""
    is_sha256 = len(file.digest) == 64
    digest = hashlib.sha256() if is_sha256 else hashlib.sha1(usedforsecurity=False)
    if not is_sha256:
        digest.update(b"blob %d\x00" % file.size_bytes)
    with path.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
