"""`forgellm hosts`: the machines that train along, checked before they are needed."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from forgellm.paths import find_workspace

if TYPE_CHECKING:
    from forgellm.schema.hosts import HostCheck


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds the command and its sub-command."""
    parser = subparsers.add_parser("hosts", help="check the machines that train along")
    parser.add_argument("--workspace", help="folder that holds hosts.toml, models/ and dataset/")
    commands = parser.add_subparsers(dest="hosts_command", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "check",
        help="whether each can be reached and has what a run needs",
        description="Looks at the machines of hosts.toml over ssh, all at once. Exit code 1 if "
        "anything is missing.",
    )
    add = command.add_argument
    add("names", nargs="*", metavar="NAME", help="of a machine in hosts.toml (default: all)")
    add("--model", metavar="NAME", help="must be there, and the same as here")
    add("--dataset", metavar="NAME", help="must be there, and the same as here")
    add("--engine", choices=("auto", "torch", "mlx"), default="auto", help="must be there")
    add("--address", help="of this machine, that the others connect to (default: found out)")
    add("--json", action="store_true", help="machine-readable output")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Raises ForgeError."""
    from forgellm.hardware import default_engine
    from forgellm.hosts.check import Wanted, check_hosts
    from forgellm.hosts.file import find_hosts, require_hosts

    workspace = find_workspace(args.workspace)
    hosts = find_hosts(workspace, args.names) if args.names else require_hosts(workspace)
    engine = default_engine()[0] if args.engine == "auto" else args.engine
    checks = check_hosts(
        workspace, hosts, Wanted(engine, args.model, args.dataset, address=args.address)
    )
    if args.json:
        print(json.dumps([check.model_dump() for check in checks], indent=2))
    else:
        _print(checks)
    return 0 if all(check.ok for check in checks) else 1


def _print(checks: list[HostCheck]) -> None:
    from forgellm.cli.tables import print_table

    rows = [
        (
            check.name,
            finding.check,
            "ok" if finding.ok else "MISSING",
            finding.found,
            finding.advice or "",
        )
        for check in checks
        for finding in check.findings
    ]
    print_table(("HOST", "CHECK", "", "FOUND", "WHAT TO DO"), rows)
    ready = sum(check.ok for check in checks)
    print(f"{ready} of {len(checks)} ready.")
