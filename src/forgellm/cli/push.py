"""`forgellm models push`: a published model or an export goes to the hub."""

from __future__ import annotations

import argparse
from typing import Any

from forgellm.paths import Workspace


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    command = commands.add_parser(
        "push",
        help="upload a published model or an export to the Hugging Face hub",
        description="Upload all files of models/published/NAME or models/exported/NAME in one "
        "commit, with the token of HF_TOKEN or hf auth login.",
    )
    command.add_argument("name", metavar="NAME", help="published/NAME or exported/NAME")
    command.add_argument("--repo", required=True, metavar="OWNER/NAME", help="where to on the hub")
    command.add_argument("--public", action="store_true", help="not private, as a new one is else")
    command.add_argument("--dry-run", action="store_true", help="only say what would be sent")


def run(args: argparse.Namespace, workspace: Workspace) -> int:
    """Raises ForgeError."""
    from forgellm.cli.model_choice import checked
    from forgellm.cli.progress import progress_bar
    from forgellm.publishing import push as pushing
    from forgellm.schema.push import PushRequest

    request = checked(
        PushRequest,
        model_name=args.name,
        repo_id=args.repo,
        private=not args.public,
        dry_run=args.dry_run,
    )
    with progress_bar() as on_progress:
        result = pushing.push(request, workspace, on_progress)
    for file in result.files:
        print(f"{file.size_bytes / 1e6:10.2f} MB  {file.name}")
    kind = "private" if result.private else "public"
    if result.commit_url is None:
        print(f"Nothing was sent. Without --dry-run they go to the {kind} repository {args.repo}.")
    else:
        print(f"Pushed to the {kind} repository {args.repo}: {result.commit_url}")
    return 0
