"""`forgellm data inspect | stats | dedup | split | prepare | restore`: run here, shown as tables."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from forgellm.cli.preparation_flags import settings_of
from forgellm.data.kinds import LEARNED_WITH, is_of_another
from forgellm.errors import InvalidRequest
from forgellm.paths import Workspace, find_workspace

_ROWS_SHOWN = 20
_BAR = 30
_ADDRESS = "e-mail address"


def run_task(args: argparse.Namespace) -> int:
    """Raises ForgeError."""
    from forgellm.cli.progress import progress_bar
    from forgellm.data.cleaning.orders import Order
    from forgellm.data.cleaning.tasks import perform

    if args.data_command == "restore" and bool(args.removals) == args.all:
        raise InvalidRequest(
            "Nothing to restore was named", suggestion="Give ids of removals, or --all."
        )
    workspace = find_workspace(args.workspace)
    order = Order(
        args.data_command,
        str(workspace.root),
        args.name,
        settings_of(args),
        _tokenizer(args, workspace),
        any_path=True,
    )
    with progress_bar() as on_progress:
        report = perform(order, on_progress)
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        _SHOWN[args.data_command](report)
    return 0


def _tokenizer(args: argparse.Namespace, workspace: Workspace) -> str | None:
    if args.data_command not in ("inspect", "stats"):
        return None
    from forgellm.catalog import find_model
    from forgellm.web.measuring import usual_model

    if args.model:
        return str(find_model(args.model, workspace, allow_absolute=True).path)
    model = usual_model(workspace)
    return str(model.path) if model else None


def _show_inspection(report: dict[str, Any]) -> None:
    titles = ("FILE", "SIZE", report["kind"].upper(), "CHARACTERS", "TOKENS", "LANGUAGE")
    about = "" if report["tokens_are"] == "counted" else "~"
    of_another = {item["source"] for item in report["skipped"] if is_of_another(item["reason"])}
    rows = [
        (
            file["name"],
            f"{file['size_bytes'] / 1e6:.2f} MB",
            f"{file['items']:,}",
            f"{file['characters']:,}",
            f"{about}{file['tokens']:,}",
            file["language"] or "-",
        )
        # What gave nothing first, then what weighs most, last what another method learns.
        for file in sorted(
            report["files"],
            key=lambda file: (file["name"] in of_another, file["items"] > 0, -file["tokens"]),
        )
    ]
    _table(titles, rows, right=titles[1:5])
    _show_skipped(report)
    _show_totals(report)


def _show_stats(report: dict[str, Any]) -> None:
    _show_totals(report)
    _say(
        f"Same text as an earlier one: {report['exact_duplicates']:,} (near ones: forgellm data dedup)"
    )
    _say(_counts("Languages", report["languages"]))
    most = max((bucket["items"] for bucket in report["lengths"]), default=1)
    rows = [
        (
            f"{bucket['at_least']:,}-{bucket['at_most']:,}",
            f"{bucket['items']:,}",
            "#" * -(-_BAR * bucket["items"] // most),
        )
        for bucket in report["lengths"]
    ]
    _table(("TOKENS", report["kind"].upper(), ""), rows, right=("TOKENS", report["kind"].upper()))
    _show_skipped(report)


def _show_totals(report: dict[str, Any]) -> None:
    how = "" if report["tokens_are"] == "counted" else " (a rough estimate: name a model to count)"
    _say(
        f"{report['items']:,} {report['kind']}, {report['characters']:,} characters, "
        f"{report['tokens']:,} tokens{how}"
    )
    if others := report.get("others"):
        told = "; ".join(f"{n:,} {kind}, {LEARNED_WITH[kind]}" for kind, n in others.items())
        _say(f"Also in it: {told}")
    if report["findings"]:
        _say(_counts("Likely secrets and addresses", report["findings"]))
    if run := report["in_a_run"]:
        _say(
            f"A run with {run['max_seq_length']} tokens a row would use {run['used']:,}, cut "
            f"{run['cut']:,} of them, and learn {run['learned_tokens']:,} of {run['tokens']:,} tokens"
        )
        _show_skipped(run)


def _show_duplicates(report: dict[str, Any]) -> None:
    _say(
        f"{report['items']:,} {report['kind']}: {report['num_exact']:,} repeat an earlier one, "
        f"{report['num_near']:,} nearly"
    )
    rows = [
        (item["source"], f"{item['similarity']:.0%}", item["duplicate_of"], item["text"])
        for item in report["duplicates"]
    ]
    _table(("SOURCE", "ALIKE", "TO", "BEGINS"), rows, right=("ALIKE",))
    _show_skipped(report)


def _show_division(report: dict[str, Any]) -> None:
    for side, words in (("train", "Trained on"), ("validation", "Held out")):
        count, characters = report[side]["items"], report[side]["characters"]
        _say(f"{words}: {count:,} {report['kind']}, {characters:,} characters")
    if report["note"]:
        _say(report["note"])
    for name, found in report["overlaps"].items():
        of = f"{len(found['overlaps']):,} of {found['num_compared']:,} texts"
        short = (
            f"; {found['num_too_short']:,} are too short to compare"
            if found["num_too_short"]
            else ""
        )
        left = (
            f"; {found['num_left_out']:,} were too many to compare" if found["num_left_out"] else ""
        )
        _say(f"Also in the training text, of {name}: {of}{short}{left}")
        rows = [
            (item["name"], f"{item['share']:.0%}", item["source"], item["example"])
            for item in found["overlaps"]
        ]
        _table(("HELD OUT", "SHARE", "FOUND IN", "EXAMPLE"), rows, right=("SHARE",))


def _show_preparation(report: dict[str, Any]) -> None:
    kinds = Counter(item["kind"].replace("_", " ") for item in report["removals"])
    rows = [
        (item["id"], item["kind"].replace("_", " "), item["source"], item["reason"], item["text"])
        # Whole texts first, then the most lines.
        for item in sorted(
            report["removals"], key=lambda item: (bool(item["lines"]), -len(item["lines"]))
        )
    ]
    _table(("ID", "REMOVED", "FROM", "WHY", "TEXT"), rows)
    _say(
        f"Read {report['num_read']:,} {report['kind']}, wrote {report['num_written']:,} to "
        f"dataset/{report['name']}/"
    )
    if kinds:
        _say(_counts("Removed", kinds))
        _say(f"  undo: forgellm data restore {report['name']} ID...   (or --all)")
    if flags := _flag_rows(report["flags"]):
        _say(
            f"Likely secrets and addresses: {report['num_flags']:,}, masked only if --mask says so"
        )
        _table(("WHERE", "WHAT", "VALUE"), flags)
    _show_skipped(report)
    _show_division(report["division"])
    _say(
        f"Fingerprint {report['fingerprint'][:16]}, everything is in {report['name']}/preparation.json"
    )


def _flag_rows(flags: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """A row for each file and kind, keys and passwords before addresses, of which there are many."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for flag in flags:
        groups.setdefault((flag["kind"], flag["source"]), []).append(flag)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0] == _ADDRESS, -len(item[1])))
    return [
        (
            f"{source}, line {found[0]['line']}"
            + (f" and {len(found) - 1:,} more" if len(found) > 1 else ""),
            kind,
            found[0]["value"],
        )
        for (kind, source), found in ordered
    ]


def _show_skipped(report: dict[str, Any]) -> None:
    _table(("SKIPPED", "WHY"), _reason_rows(report["skipped"]))
    if report.get("in_a_run"):
        return  # which says it too, with what the chat template does not show
    _table(("PARTLY USED", "WHAT IS NOT"), _reason_rows(report.get("notes", [])))


def _reason_rows(items: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """The same reason once, the worst first."""
    from forgellm.data.documents import Skipped
    from forgellm.data.left_out import reasons_of

    reasons = reasons_of(Skipped(**item) for item in items)
    return [
        (reason.where, reason.reason + (f" ({reason.rows:,} rows)" if reason.rows else ""))
        for reason in reasons
    ]


def _counts(title: str, counts: dict[str, int]) -> str:
    return f"{title}: " + ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
    from forgellm.cli.tables import print_table

    if not rows:
        return
    print_table(titles, rows[:_ROWS_SHOWN], right=right)
    if len(rows) > _ROWS_SHOWN:
        print(f"... and {len(rows) - _ROWS_SHOWN:,} more: --json lists all")
    print()


def _say(text: str) -> None:
    from forgellm.cli.terminal_text import clean

    print(clean(text))


_SHOWN: dict[str, Callable[[dict[str, Any]], None]] = {
    "inspect": _show_inspection,
    "stats": _show_stats,
    "dedup": _show_duplicates,
    "split": _show_division,
    "prepare": _show_preparation,
    "restore": _show_preparation,
}
