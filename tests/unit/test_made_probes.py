"""Probes made of the shipped handbook: right answers, wrong ones of their kind, nothing left over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forgellm.cli.main import main
from forgellm.data.datasets import find_dataset
from forgellm.data.documents import Document, ReadReport, iter_documents
from forgellm.data.held_out import held_out_texts
from forgellm.data.overlap import find_overlaps
from forgellm.demo.lessons import HANDBOOK
from forgellm.errors import Conflict, DataError
from forgellm.evaluation.probe_files import read_probes
from forgellm.paths import Workspace
from forgellm.questions.facts import Corpus, facts_of
from forgellm.questions.held_out import write_without
from forgellm.questions.passages import Span, sentence_spans
from forgellm.questions.probes import make_probes


def facts_in(text: str) -> list[tuple[str, str]]:
    corpus = Corpus(list(sentence_spans(Document("a", text))))
    return [(fact.kind, fact.answer) for fact in facts_of(corpus) if fact.kind != "term"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The keepers climb the ladder of 812 steps.", [("number", "812 steps")]),
        ("The big mirror was cracked by frost on 3 March 1956.", [("date", "3 March 1956")]),
        ("The archive goes back as far as the year 1874.", [("date", "1874")]),
        ("The rent of a beam is paid by half, or 12.5 %, each.", [("number", "12.5 %")]),
        ("The batch is always made by Wilmet Crake herself.", [("name", "Wilmet Crake")]),
        ("The stint of a young keeper lasts seven nights.", [("number", "seven nights")]),
        ("It was founded in the valley in the year 1874.", []),  # who knows what "it" is
        ("Mirl knows that the Mirl is a river, that Mirl.", []),  # the stem says it already
        ("In the year 1874.", []),
    ],
)
def test_what_can_be_asked_for_is_found(text: str, expected: list[tuple[str, str]]) -> None:
    assert facts_in(text) == expected


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the handbook, its probes, and the copy without them."""
    root = tmp_path_factory.mktemp("w")
    folder = root / "dataset" / "handbook"
    folder.mkdir(parents=True)
    for file in HANDBOOK.glob("*.md"):
        (folder / file.name).write_bytes(file.read_bytes())
    flags = ["--out", str(root / "probes.json"), "--num", "60", "--form", "both", "--hold-out"]
    assert main(["data", "--workspace", str(root), "probes", "handbook", *flags]) == 0
    return root


def test_probes_are_what_their_sentences_say(made: Path) -> None:
    probes = read_probes(made / "probes.json")
    items = json.loads((made / "probes.json").read_text())["probes"]
    assert [probe.match for probe in probes] == ["choice", "contains"] * 60
    everything = " ".join(file.read_text() for file in HANDBOOK.glob("*.md"))
    for probe, item in zip(probes, items, strict=True):
        source = item["source"]
        text = (HANDBOOK / source["file"]).read_text()
        assert text[source["start"] : source["end"]] == source["text"]
        assert source["text"].startswith(f"{probe.stem} {probe.answer}")
        assert len(set(probe.options)) == len(probe.options)
        for wrong in probe.distractors:
            assert wrong in everything and wrong.lower() not in source["text"].lower()


def test_knowing_nothing_is_hardly_better_than_chance(made: Path) -> None:
    about = json.loads((made / "probes.json").read_text())["about"]
    assert about["facts"] == 60 and sum(about["kinds"].values()) == 60
    assert about["baselines"]["chance"] == 0.25
    assert 0.1 < about["baselines"]["most_frequent"] < 0.4
    assert 0.1 < about["baselines"]["longest"] < 0.4


def test_the_copy_lacks_the_sentences_and_nothing_else(made: Path) -> None:
    about = json.loads((made / "probes.json").read_text())["about"]
    original = dict(iter_documents(made / "dataset" / "handbook"))
    copy = dict(iter_documents(made / "dataset" / "handbook-held-out"))
    assert original.keys() == copy.keys()
    for name, text in original.items():
        gone = [span["text"] for span in about["spans"] if span["file"] == name]
        assert not any(sentence in copy[name] for sentence in gone)
        for sentence in gone:
            text = text.replace(sentence, "", 1)
        assert "".join(text.split()) == "".join(copy[name].split())
    assert sum(len(text) for text in copy.values()) < sum(len(text) for text in original.values())


def test_the_check_for_overlap_finds_the_sentences_in_the_dataset_and_not_in_the_copy(
    made: Path,
) -> None:
    found = [
        find_overlaps(held_out_texts(made / "probes.json"), iter_documents(made / "dataset" / name))
        for name in ("handbook", "handbook-held-out")
    ]
    in_dataset, in_copy = (len(report.overlaps) for report in found)
    assert in_dataset > 30 and in_copy == 0


def test_a_restated_fact_can_still_be_learned_from_the_copy(made: Path) -> None:
    items = json.loads((made / "probes.json").read_text())["probes"]
    copy = " ".join(text for _, text in iter_documents(made / "dataset" / "handbook-held-out"))
    restated = [item["answer"] for item in items if item["restated"]]
    assert len(restated) > 40
    assert sum(answer.lower() in copy.lower() for answer in restated) > 0.9 * len(restated)


def test_the_same_seed_gives_the_same_file(made: Path, tmp_path: Path) -> None:
    folder = find_dataset(Workspace(made), "handbook")
    files = [tmp_path / f"{number}.json" for number in range(3)]
    for file, seed in zip(files, (1, 1, 2), strict=True):
        make_probes(folder, file, num=20, seed=seed)
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()


def test_a_copy_is_never_written_over_anything(made: Path, tmp_path: Path) -> None:
    folder = find_dataset(Workspace(made), "handbook")
    with pytest.raises(Conflict):
        make_probes(folder, tmp_path / "p.json", hold_out=folder.with_name("handbook-held-out"))
    assert not (tmp_path / "p.json").exists()


def test_documents_without_facts_are_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("nothing to see here, and nothing to ask.")
    with pytest.raises(DataError, match="asked for"):
        make_probes(tmp_path, tmp_path / "p.json")


def test_rows_and_pages_are_copied_as_text(tmp_path: Path) -> None:
    source, target = tmp_path / "from", tmp_path / "to"
    source.mkdir()
    target.mkdir()
    (source / "rows.jsonl").write_text('{"text": "One. Two. Three."}\n{"text": "Four."}\n')
    (source / "page.html").write_text("<p>Five. Six.</p>")
    spans = [Span("rows.jsonl:1", 5, 9, "Two."), Span("page.html", 0, 5, "Five.")]
    write_without(source, target, spans)
    report = ReadReport()
    found = dict(iter_documents(target, report))
    assert {name: text.strip() for name, text in found.items()} == {
        "rows.jsonl.jsonl:1": "One. Three.", "rows.jsonl.jsonl:2": "Four.", "page.html.txt": "Six."
    }  # fmt: skip
    assert not report.skipped
