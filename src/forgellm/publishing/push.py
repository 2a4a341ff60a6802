"""What was published or exported goes to the Hugging Face hub: only when asked, private by default."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from forgellm.child import OnProgress
from forgellm.errors import (
    Conflict,
    HubUnavailable,
    InvalidRequest,
    ModelNotFound,
    PathNotFound,
)
from forgellm.paths import Workspace
from forgellm.publishing.artefact import make
from forgellm.schema.push import PushedFile, PushRequest, PushResult

_LOGIN = (
    "Set HF_TOKEN to a token that may write (huggingface.co/settings/tokens), or run hf auth login."
)


def push(
    request: PushRequest,
    workspace: Workspace,
    on_progress: OnProgress = lambda fraction, text: None,
    on_start: Callable[[Callable[[], None]], None] = lambda stop: None,
) -> PushResult:
    """Upload every file of a published model or an export in one commit; a dry run asks nobody.

    Raises ModelNotFound, InvalidRequest (no token, or one that may not), Conflict (the repository
    is public and private was asked for), HubUnavailable.
    """
    find_pushed(request.model_name, workspace)
    result = make("push", request.model_dump(), workspace, on_progress, on_start)
    return PushResult.model_validate(result)


def find_pushed(name: str, workspace: Workspace) -> Path:
    """The folder that `published/NAME` or `exported/NAME` means. Raises ModelNotFound."""
    places = (workspace.published_models, workspace.exported_models)
    searched = [f"models/{place.name}/" for place in places]
    hint = "Publish or export first; forgellm models tree lists what there is."
    try:
        folder = workspace.resolve(name, below=workspace.models)
    except PathNotFound:
        raise ModelNotFound(name, searched, suggestion=hint) from None
    if not folder.is_dir() or folder.parent not in [place.resolve() for place in places]:
        raise ModelNotFound(name, searched, suggestion=hint)
    return folder


def push_task(
    request: dict[str, Any], workspace: Workspace, on_progress: OnProgress
) -> dict[str, Any]:
    """The child's side of `push`."""
    wanted = PushRequest.model_validate(request)
    folder = find_pushed(wanted.model_name, workspace)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    shown = [
        PushedFile(name=path.relative_to(folder).as_posix(), size_bytes=path.stat().st_size)
        for path in files
    ]
    commit = None if wanted.dry_run else _upload(wanted, folder, shown, on_progress)
    result = PushResult(
        repo_id=wanted.repo_id,
        private=wanted.private,
        files=shown,
        commit_url=commit,
    )
    return result.model_dump()


def _upload(
    wanted: PushRequest, folder: Path, files: list[PushedFile], on_progress: OnProgress
) -> str:
    """Large files first, one after another, then the commit that makes all of them visible."""
    import httpx2
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    if get_token() is None:
        raise InvalidRequest("There is no token for the hub", suggestion=_LOGIN)
    api, repo_id = HfApi(), wanted.repo_id
    total, done = sum(file.size_bytes for file in files) or 1, 0
    try:
        api.create_repo(repo_id, private=wanted.private, exist_ok=True)
        if wanted.private and not api.model_info(repo_id).private:
            raise Conflict(
                "The repository is public already, and a private one was asked for",
                suggestion="Choose another name, or push with private turned off.",
                details={"repo_id": repo_id},
            )
        operations = []
        for file in files:
            on_progress(done / total, f"{file.name}, {file.size_bytes / 1e6:.1f} MB")
            operation = CommitOperationAdd(file.name, folder / file.name)
            api.preupload_lfs_files(repo_id, [operation])
            operations.append(operation)
            done += file.size_bytes
        on_progress(1.0, "committing")
        message = f"{wanted.model_name.rpartition('/')[2]}, made with ForgeLLM"
        return str(api.create_commit(repo_id, operations, commit_message=message).commit_url)
    except HfHubHTTPError as error:
        raise _refusal(error.response.status_code, repo_id) from error
    except HFValidationError:
        raise InvalidRequest(f"{repo_id!r} cannot be the name of a repository") from None
    except OfflineModeIsEnabled:
        raise HubUnavailable(
            "The hub was not asked: the environment says to stay offline",
            suggestion="Unset HF_HUB_OFFLINE (and TRANSFORMERS_OFFLINE), then push again.",
        ) from None
    except (httpx2.HTTPError, ConnectionError, TimeoutError) as error:
        raise HubUnavailable(
            f"The hub could not be reached ({type(error).__name__})",
            suggestion="Check the network, then push again: what has arrived is not sent twice.",
        ) from error


def _refusal(status: int, repo_id: str) -> InvalidRequest | HubUnavailable:
    if status in (401, 403, 404):
        return InvalidRequest(
            f"The hub does not let this token write to {repo_id}",
            suggestion=_LOGIN,
            details={"repo_id": repo_id, "status": status},
        )
    return HubUnavailable(f"The hub answered with status {status}")
