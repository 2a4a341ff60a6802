"""A prepared copy of a dataset: what it leaves out, that all of it comes back, and its fingerprint."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from forgellm.cli.main import main
from forgellm.data.cleaning import preparation
from forgellm.data.cleaning.manifest import read_manifest
from forgellm.data.cleaning.orders import Order
from forgellm.data.cleaning.preparation import prepare, restore
from forgellm.data.cleaning.tasks import perform
from forgellm.data.documents import (
    MANIFEST_NAME,
    dataset_files,
    dataset_fingerprint,
    iter_documents,
)
from forgellm.data.prepare import prepare_data
from forgellm.data.tokenizer import Tokenizer
from forgellm.errors import Conflict, DataError, InvalidRequest, NotFound
from forgellm.schema.preparation import PrepareRequest
from paper import pdf
from preference_pairs import write_preferences
from tiny_workspace import build_tiny_workspace, tiny_recipe, write_conversations

WORDS = [f"word{number}" for number in range(500)]
ADDRESS = "ann@mail.example.org"


def quiet(done: float, task: str) -> None:
    assert 0 <= done <= 1 and task


def paragraph(rng: random.Random, lines: int = 10) -> str:
    return "\n".join(" ".join(rng.choices(WORDS, k=9)) for _ in range(lines))


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Documents of many kinds, with footers, copies and an address."""
    folder = tmp_path / "dataset" / "notes"
    (folder / "deep").mkdir(parents=True)
    rng = random.Random(9)
    texts = [paragraph(rng) for _ in range(8)]
    for number, text in enumerate(texts):
        (folder / f"{number}.md").write_text(f"{text}\n\nThe Mirror Guild, all rights reserved\n")
    (folder / "copy.txt").write_text(texts[3].upper())
    (folder / "near.txt").write_text(texts[4] + " and more")
    (folder / "deep" / "page.html").write_text(f"<p>{paragraph(rng)} {ADDRESS}</p>")
    rows = [json.dumps({"text": paragraph(rng)}) for _ in range(3)]
    (folder / "rows.jsonl").write_text("\n".join([*rows, rows[0], "{broken"]))
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    return folder


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes().decode("latin-1") for path in files
    }


def texts_of(folder: Path) -> list[str]:
    return sorted(document.text for document in iter_documents(folder))


def test_a_copy_without_duplicates_and_boilerplate_is_made(notes: Path) -> None:
    before = contents(notes)
    made = prepare(notes, PrepareRequest(mask=["emails"]), {}, quiet)
    target = notes.with_name("notes-prepared")
    assert contents(notes) == before
    assert [path.name for path in notes.parent.iterdir() if path.name.startswith(".")] == []
    kinds = sorted((item.kind, item.source) for item in made.removals)
    assert kinds == [
        *[("boilerplate", f"{number}.md") for number in range(8)],
        ("duplicate", "copy.txt" if "copy.txt" > "3.md" else "3.md"),
        ("duplicate", "rows.jsonl:4"),
        ("masked", "deep/page.html"),
        ("near_duplicate", "near.txt"),
    ]
    copy = next(item for item in made.removals if item.source == "copy.txt")
    assert copy.duplicate_of == "3.md" and copy.reason == "the same text: 3.md"
    footer = next(item for item in made.removals if item.source == "0.md")
    assert footer.text == "The Mirror Guild, all rights reserved" and footer.lines == [12]
    assert (made.num_read, made.num_written) == (15, 12)
    skipped = {item["source"] for item in made.skipped}
    assert skipped == {"broken.pdf", "picture.png", "rows.jsonl"}
    assert made.flags == [
        {"source": "deep/page.html", "line": 1, "kind": "e-mail address", "value": "a***@mail.example.org"}
    ]  # fmt: skip
    assert (target / "0.md").read_text() == before["0.md"].replace(f"{footer.text}\n", "")
    assert (target / "deep" / "page.html.txt").read_text().endswith(" [e-mail]")
    assert len((target / "rows.jsonl").read_text().splitlines()) == 3
    assert read_manifest(target) == made


def test_the_copy_trains_like_any_dataset_and_its_list_is_no_document(notes: Path) -> None:
    made = prepare(notes, PrepareRequest(), {}, quiet)
    target = notes.with_name("notes-prepared")
    assert (target / MANIFEST_NAME).is_file()
    assert MANIFEST_NAME not in [file.name for file in dataset_files(target).files]
    assert dataset_files(target).skipped == []
    assert len(texts_of(target)) == made.num_written
    (notes / MANIFEST_NAME).write_text('{"text": "a file of the user by that name"}')
    assert "a file of the user by that name" in texts_of(notes)


def test_one_removal_can_be_undone(notes: Path) -> None:
    made = prepare(notes, PrepareRequest(), {}, quiet)
    target = notes.with_name("notes-prepared")
    chosen = next(item for item in made.removals if item.source == "copy.txt")
    again = restore(target, [chosen.id], {}, quiet)
    assert {item.id for item in made.removals} - {item.id for item in again.removals} == {chosen.id}
    assert again.restored == [chosen.id]
    assert (target / "copy.txt").read_text() == (notes / "copy.txt").read_text()
    assert read_manifest(target).num_written == made.num_written + 1


def test_everything_can_be_undone(notes: Path) -> None:
    prepare(notes, PrepareRequest(mask=["secrets", "emails"]), {}, quiet)
    target = notes.with_name("notes-prepared")
    made = restore(target, [], {}, quiet)
    assert made.removals == []
    assert texts_of(target) == texts_of(notes)


def test_undoing_needs_the_original_as_it_was(notes: Path) -> None:
    prepare(notes, PrepareRequest(), {}, quiet)
    target = notes.with_name("notes-prepared")
    with pytest.raises(InvalidRequest, match="'nothing'"):
        restore(target, ["nothing"], {}, quiet)
    (notes / "0.md").write_text("other")
    with pytest.raises(Conflict, match="changed"):
        restore(target, [], {}, quiet)
    shutil.rmtree(notes)
    with pytest.raises(NotFound, match="not here"):
        restore(target, [], {}, quiet)


def test_a_folder_of_someone_else_is_never_replaced(notes: Path) -> None:
    target = notes.with_name("notes-prepared")
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    with pytest.raises(Conflict, match="not made by a preparation"):
        prepare(notes, PrepareRequest(), {}, quiet)
    assert contents(target) == {"mine.txt": "mine"}
    with pytest.raises(NotFound):
        restore(target, [], {}, quiet)


def test_what_ends_in_the_middle_leaves_the_copy_before(
    notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(notes, PrepareRequest(), {}, quiet)
    target = notes.with_name("notes-prepared")
    before = contents(target)

    def stopped(done: float, task: str) -> None:
        if task == "comparing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(notes, PrepareRequest(duplicates=False), {}, stopped)
    assert contents(target) == before
    assert len(list(notes.parent.iterdir())) == 2
    monkeypatch.setattr(preparation, "Output", None)  # nothing is read from a copy that fails early
    (notes.parent / "empty").mkdir()
    with pytest.raises(DataError, match="No documents"):
        prepare(notes.parent / "empty", PrepareRequest(), {}, quiet)


def test_flags_name_the_line_of_the_original(tmp_path: Path) -> None:
    folder = tmp_path / "dataset" / "pages"
    folder.mkdir(parents=True)
    rng = random.Random(3)
    for number in range(6):
        text = paragraph(rng)
        (folder / f"{number}.txt").write_text(
            f"Home of the Guild\n{text} {ADDRESS}\nthe end\nof {number}"
        )
    made = prepare(folder, PrepareRequest(), {}, quiet)
    assert {item.lines[0] for item in made.removals} == {1, 12}
    assert [(flag["line"], flag["value"]) for flag in made.flags] == [
        (11, "a***@mail.example.org")
    ] * 6


def test_conversations_keep_their_rows(tmp_path: Path) -> None:
    folder = tmp_path / "dataset" / "chats"
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = [
        {"instruction": f"{text} {ADDRESS}", "input": "", "output": f"It is {text}.", "n": 2**70}
        for text in ("red", "green", "green", "blue")
    ]
    lines = [json.dumps(row) for row in rows]
    (folder / "a.jsonl").write_text("\n".join([*lines, '{"x": 1}']))
    (folder / "b.csv").write_text("question,answer\nwho?,nobody\nwho?,nobody\n")
    made = prepare(folder, PrepareRequest(mask=["emails"]), {}, quiet)
    target = tmp_path / "dataset" / "chats-prepared"
    written = [json.loads(line) for line in (target / "a.jsonl").read_text().splitlines()]
    assert [row["instruction"] for row in written] == [
        "red [e-mail]",
        "green [e-mail]",
        "blue [e-mail]",
    ]
    assert [set(row) for row in written] == [set(rows[0])] * 3
    assert (target / "b.csv.jsonl").read_text() == '{"question":"who?","answer":"nobody"}\n'
    assert made.kind == "conversations" and made.num_written == 4
    assert restore(target, [], {}, quiet).num_written == 6


def test_the_fingerprint_is_that_of_the_content_alone(notes: Path, tmp_path: Path) -> None:
    """Elsewhere, at another time, in another process with another hash seed."""
    made = prepare(notes, PrepareRequest(), {}, quiet)
    elsewhere = tmp_path / "another machine"
    for path in sorted(notes.rglob("*"), reverse=True):  # files appear in another order
        if path.is_file():
            target = elsewhere / "dataset" / "notes" / path.relative_to(notes)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
            os.utime(target, (1, 1))
    for seed in ("1", "2"):
        order = Order("prepare", str(elsewhere), "notes").__dict__
        done = subprocess.run(
            [sys.executable, "-m", "forgellm.data.cleaning", json.dumps(order)],
            capture_output=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        )
        result = json.loads(done.stdout.splitlines()[-1])["result"]
        assert result["fingerprint"] == made.fingerprint
        assert [item["id"] for item in result["removals"]] == [item.id for item in made.removals]
    copy = shutil.copytree(notes.with_name("notes-prepared"), tmp_path / "copy")
    assert dataset_fingerprint(copy) == made.fingerprint
    (copy / "0.md").write_text("other")
    assert dataset_fingerprint(copy) != made.fingerprint


def test_accents_of_file_names_are_the_same_on_every_system(tmp_path: Path) -> None:
    for folder, name in (("composed", "caf\u00e9.txt"), ("decomposed", "cafe\u0301.txt")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text("text")
    assert dataset_fingerprint(tmp_path / "composed") == dataset_fingerprint(
        tmp_path / "decomposed"
    )


def test_a_run_records_how_its_data_was_prepared(tmp_path: Path) -> None:
    workspace = build_tiny_workspace(tmp_path)
    made = prepare(workspace.datasets / "notes", PrepareRequest(), {}, quiet)
    tokenizer = Tokenizer.load(workspace.base_models / "tiny")
    recipe = tiny_recipe(dataset="notes-prepared", data_mixture_ratio=1.0)
    summary = prepare_data(recipe, workspace, tokenizer, 64).summary
    assert summary["fingerprint"] == made.fingerprint
    assert summary["preparation"] == {
        "dataset": "notes",
        "original_fingerprint": made.original_fingerprint,
        "settings": made.settings,
        "num_removals": len(made.removals),
        "num_restored": 0,
        "changed_since": False,
    }
    (workspace.datasets / "notes-prepared" / "more.txt").write_text("more " * 50)
    assert prepare_data(recipe, workspace, tokenizer, 64).summary["preparation"]["changed_since"]
    other = prepare_data(tiny_recipe(data_mixture_ratio=1.0), workspace, tokenizer, 64)
    assert other.summary["preparation"] is None


def test_a_split_is_that_of_a_run(tmp_path: Path) -> None:
    workspace = build_tiny_workspace(tmp_path)
    probes = {"probes": [{"question": (workspace.datasets / "notes" / "003.txt").read_text()}]}
    (tmp_path / "probes.json").write_text(json.dumps(probes))
    settings = {"validation_split": 0.25, "seed": 3, "against": ["probes.json"]}
    report = perform(Order("split", str(tmp_path), "notes", settings), quiet)
    tokenizer = Tokenizer.load(workspace.base_models / "tiny")
    recipe = tiny_recipe(data_mixture_ratio=1.0, validation_split=0.25, seed=3)
    summary = prepare_data(recipe, workspace, tokenizer, 64).summary
    assert report["train"]["items"] == summary["train_documents"]
    assert report["validation"]["items"] == summary["validation_documents"] == 6
    held_out = "003.txt" in report["validation"]["sources"]
    (found,) = report["overlaps"]["probes.json"]["overlaps"] or [{"share": 0.0}]
    assert found["share"] == (0.0 if held_out else 1.0)
    assert report["overlaps"]["validation"]["num_compared"] == 6


def test_an_inspection_counts_as_a_run_would(tmp_path: Path) -> None:
    workspace = build_tiny_workspace(tmp_path)
    notes = workspace.datasets / "notes"
    (notes / "scan.pdf").write_bytes(b"%PDF-1.4")
    (notes / "same.txt").write_text((notes / "000.txt").read_text())
    model = workspace.base_models / "tiny"
    found = perform(Order("inspect", str(tmp_path), "notes", {}, str(model)), quiet)
    summary = prepare_data(tiny_recipe(data_mixture_ratio=1.0), workspace, Tokenizer.load(model), 64).summary  # fmt: skip
    # A run adds a token to the end of each document.
    assert (
        found["tokens"] + found["items"] == summary["train_tokens"] + summary["validation_tokens"]
    )
    assert (found["tokens_are"], found["exact_duplicates"], found["items"]) == ("counted", 1, 25)
    assert sum(bucket["items"] for bucket in found["lengths"]) == 25
    assert all(
        bucket["at_least"] * bucket["items"]
        <= bucket["tokens"]
        <= bucket["at_most"] * bucket["items"]
        for bucket in found["lengths"]
    )
    assert found["skipped"][0]["source"] == "scan.pdf"
    first = found["files"][0]
    assert (first["name"], first["type"], first["items"], first["language"]) == ("000.txt", ".txt", 1, "en")  # fmt: skip
    rough = perform(Order("inspect", str(tmp_path), "notes"), quiet)
    assert rough["tokens_are"] == "estimated"
    assert rough["tokens"] == pytest.approx(rough["characters"] / 4, rel=0.05)


def test_an_inspection_of_conversations_says_what_a_run_would_use(tmp_path: Path) -> None:
    workspace = build_tiny_workspace(tmp_path)
    folder = write_conversations(workspace, "chats", 10)
    with (folder / "chat.jsonl").open("a") as file:
        file.write('{"messages": []}\n')
    (folder / "about.md").write_text("about it")
    order = Order("inspect", str(tmp_path), "chats", {"max_seq_length": 64}, str(workspace.base_models / "tiny"))  # fmt: skip
    found = perform(order, quiet)
    assert (found["kind"], found["items"], found["in_a_run"]["used"]) == ("conversations", 10, 10)
    assert 0 < found["in_a_run"]["learned_tokens"] < found["in_a_run"]["tokens"]
    assert [item["reason"] for item in found["in_a_run"]["skipped"]] == [
        "no answer of an assistant, first at 11",
        "documents are learned with training_type cpt",
    ]


def test_broken_and_hostile_files_cost_a_line_each_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "dataset" / "mixed"
    folder.mkdir(parents=True)
    rng = random.Random(8)
    (folder / "good.md").write_text(paragraph(rng))
    pages = [f"Report of the Guild\n{paragraph(rng, 3)}\nPage {n} of 20" for n in range(1, 21)]
    (folder / "paper.pdf").write_bytes(pdf(pages))
    expected = set()
    endings = ".pdf .docx .odt .epub .html .ipynb .eml .json .jsonl .csv .parquet .txt .xyz"
    for ending in endings.split():
        for kind, content in (
            ("nul", bytes(200)),
            ("noise", rng.randbytes(5000)),
            ("cut", b"PK\x03\x04" + rng.randbytes(50)),
            ("empty", b""),
        ):
            (folder / f"{kind}{ending}").write_bytes(content)
            expected.add(f"{kind}{ending}")
    os.mkfifo(folder / "pipe.txt")
    (folder / "loop").symlink_to(folder)
    made = prepare(folder, PrepareRequest(), {}, quiet)
    told = {item["source"] for item in made.skipped}
    written = {path.name for path in (tmp_path / "dataset" / "mixed-prepared").iterdir()}
    read = written | {name.removesuffix(".txt") for name in written}
    removed = {item.source for item in made.removals}
    assert {"pipe.txt", "loop"} <= told
    assert len(expected & told) >= 40
    assert expected <= told | read | removed
    assert {"good.md", "paper.pdf"} <= read
    # The reader has left out heads and page numbers, so nothing is to be removed.
    assert [item.text for item in made.removals if item.source == "paper.pdf"] == []
    paper = (tmp_path / "dataset" / "mixed-prepared" / "paper.pdf.txt").read_text()
    assert "Report of the Guild" not in paper and "Page" not in paper
    assert len(paper.split("\n\n")) == 20


def test_pairs_are_inspected_as_a_run_takes_them(tmp_path: Path) -> None:
    workspace = build_tiny_workspace(tmp_path)
    folder = write_preferences(workspace, "preferred")
    with (folder / "pairs.jsonl").open("a") as file:
        file.write('{"prompt": "Why?", "chosen": "So.", "rejected": "So."}\n')
    model = workspace.base_models / "tiny"
    found = perform(Order("inspect", str(tmp_path), "preferred", {"max_seq_length": 256}, str(model)), quiet)  # fmt: skip
    recipe = tiny_recipe(
        dataset="preferred", training_type="dpo", max_seq_length=256, data_mixture_ratio=1.0
    )
    data = prepare_data(recipe, workspace, Tokenizer.load(model), 256)
    assert (found["kind"], found["items"]) == ("pairs", data.summary["documents"])
    assert found["in_a_run"]["used"] == found["items"] == found["files"][0]["items"]
    tokens = data.summary["train_tokens"] + data.summary["validation_tokens"]
    assert found["in_a_run"]["tokens"] == tokens
    (left_out,) = found["skipped"]
    assert left_out["reason"].startswith("chosen and rejected are the same")
    assert data.summary["skipped"] == [left_out]


def test_pairs_with_columns_of_other_names_are_found_by_these(tmp_path: Path) -> None:
    workspace = build_tiny_workspace(tmp_path)
    file = write_preferences(workspace, "preferred") / "pairs.jsonl"
    file.write_text(file.read_text().replace('"chosen"', '"better"').replace('"rejected"', '"no"'))
    columns = {"chosen": "better", "rejected": "no"}
    found = perform(Order("stats", str(tmp_path), "preferred", {"columns": columns}), quiet)
    assert found["kind"] == "pairs"
    assert found["items"] == len(file.read_text().splitlines())


def test_duplicate_pairs_are_left_out_of_a_prepared_copy(tmp_path: Path) -> None:
    workspace = build_tiny_workspace(tmp_path)
    folder = workspace.datasets / "preferred"
    folder.mkdir()
    row = '{"prompt": "Where does the ferry wait for the tide to turn?", "chosen": "By the mill, under the north wall.", "rejected": "Nowhere at all."}'
    (folder / "pairs.jsonl").write_text(f"{row}\n{row}\n" + row.replace("ferry", "barge") + "\n")
    made = perform(Order("prepare", str(tmp_path), "preferred"), quiet)
    assert (made["kind"], made["num_read"], made["num_written"]) == ("pairs", 3, 2)
    again = perform(Order("inspect", str(tmp_path), "preferred-prepared"), quiet)
    assert (again["kind"], again["items"]) == ("pairs", 2)


def test_the_table_of_an_inspection_begins_with_what_cost_most(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = build_tiny_workspace(tmp_path)
    folder = workspace.datasets / "notes"
    for number in range(40):
        (folder / f"a{number:02d}.png").write_bytes(b"x")
    (folder / "z.jsonl").write_text('{"name": "no text"}\n' * 30)
    (folder / "zz.md").write_text("")
    assert main(["data", "--workspace", str(tmp_path), "inspect", "notes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("SKIPPED")) + 1
    assert [line.split()[0] for line in lines[first : first + 3]] == [
        "zz.md",
        "z.jsonl",
        "a00.png,",
    ]
    assert "38 more" in lines[first + 2]
    assert {line.split()[0] for line in lines[1:3]} == {"z.jsonl", "zz.md"}
