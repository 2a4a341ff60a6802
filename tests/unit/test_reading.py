"""Documents that people have: what is taken of each, and what a hostile folder does to nobody."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from forgellm.data.documents import ReadReport, iter_documents
from forgellm.data.reading import apart, child, patience
from paper import CONTENT_TYPES, OFFICE, RELATIONS, WORD, docx, epub, odt, pdf, zipped


@pytest.fixture(autouse=True)
def no_child_left() -> Iterator[None]:
    yield
    apart._end_idle()


def read(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    report = ReadReport()
    texts = {document.source: document.text for document in iter_documents(folder, report)}
    return texts, {item.source: item.reason for item in report.skipped}


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


EML = (
    "Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n"
    "--x\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nSee you.\r\n> Before.\r\n"
    "--x\r\nContent-Type: application/octet-stream\r\nContent-Disposition: attachment; filename=a.bin\r\n\r\nsecret\r\n--x--\r\n"
)
NOTEBOOK = {
    "cells": [
        {"cell_type": "markdown", "source": ["# Mill\n", "It grinds."]},
        {"cell_type": "code", "source": "x = 1", "outputs": [{"text": "secret"}]},
    ]
}
SRT = (
    "1\r\n00:00:01,000 --> 00:00:02,000\r\n<i>The mill</i>\r\n\r\n2\r\n00:00:02,000 --> 00:00:03,000\r\n"
    "<i>The mill</i>\r\nturns.\r\n"
)
VTT = (
    "WEBVTT\n\nNOTE by nobody\n\nSTYLE\n::cue { color: red }\n\n00:01.000 --> 00:02.000 align:start\n"
    "Good <b>day</b>.\n"
)
TABLE = (
    "<w:p><w:r><w:t>Head</w:t></w:r></w:p><w:tbl><w:tr><w:tc><w:p><w:r><w:t>a</w:t></w:r></w:p></w:tc>"
    "<w:tc><w:p><w:r><w:t>b</w:t></w:r></w:p></w:tc></w:tr></w:tbl>"
)
ODT_BODY = (
    '<text:h text:outline-level="1">Head</text:h><text:p>One<text:s text:c="2"/>two<text:tab/>three'
    "<text:line-break/>four</text:p><table:table><table:table-row><table:table-cell><text:p>cell</text:p>"
    "</table:table-cell></table:table-row></table:table>"
)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.pdf", pdf(["First page", "Second page"]), "First page\n\nSecond page"),
        ("a.docx", docx(["One.", "Two."]), "One.\nTwo."),
        ("t.docx", docx([], TABLE), "Head\na\tb"),
        ("a.odt", odt(ODT_BODY), "Head\nOne  two\tthree\nfour\ncell"),
        ("a.epub", epub(["<p>Last</p>", "<h1>First</h1>"]), "First\n\nLast"),
        ("a.eml", EML, "Grüße\n\nSee you.\n> Before."),
        (
            "h.eml",
            "Subject: Hi\r\nContent-Type: text/html\r\n\r\n<p>Good</p><p>day</p>",
            "Hi\n\nGood\nday",
        ),
        ("a.ipynb", json.dumps(NOTEBOOK), "# Mill\nIt grinds.\n\n```python\nx = 1\n```"),
        ("a.srt", SRT, "The mill\nturns."),
        ("a.vtt", VTT, "Good day."),
        (
            "a.html",
            "<nav>Home</nav><main><p>Text</p><footer>note</footer></main><footer>© me</footer>",
            "Text\nnote",
        ),
        ("b.html", "<nav>Home</nav><p>Text</p>", "Home\nText"),
    ],
)
def test_each_type_gives_its_text(
    tmp_path: Path, name: str, content: str | bytes, text: str
) -> None:
    texts, skipped = read(write(tmp_path, {name: content}))
    assert not skipped
    assert {key: value.strip() for key, value in texts.items()} == {name: text}


def test_an_mbox_holds_a_document_for_each_message(tmp_path: Path) -> None:
    message = "From a@b Thu Jan  1 00:00:00 2026\nSubject: {}\n\nText {}.\n\n"
    texts, _ = read(write(tmp_path, {"a.mbox": message.format("A", 1) + message.format("B", 2)}))
    assert texts == {"a.mbox:1": "A\n\nText 1.", "a.mbox:2": "B\n\nText 2."}


def test_a_pdf_of_200_pages_is_one_document_in_order(tmp_path: Path) -> None:
    texts, _ = read(write(tmp_path, {"a.pdf": pdf([f"Page {n}" for n in range(200)])}))
    assert texts["a.pdf"].split("\n\n") == [f"Page {n}" for n in range(200)]


def test_the_child_reads_just_what_is_sent_to_it() -> None:
    assert child._READERS.keys() == set(apart.APART)


def test_the_child_has_none_of_the_users_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    taken = apart._take()
    try:
        assert "HF_TOKEN" not in psutil.Process(taken.process.pid).environ()
    finally:
        taken.end()


BILLION = '<!DOCTYPE x [<!ENTITY a "' + "a" * 1000 + '"><!ENTITY b "' + "&a;" * 1000 + '">]>'


def hostile_files() -> dict[str, str | bytes]:
    good = pdf(["Good"])
    deep = "<div>" * 20_000
    bomb = zipped({"word/document.xml": b"\0" * 300_000_000})
    many = zipped({f"p{n}": "" for n in range(21_000)})
    book, text = epub(["<p>x</p>"]), odt("<text:p>x</text:p>")
    container = '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile full-path="{}"/></rootfiles></container>'
    return {
        "empty.pdf": b"",
        "short.pdf": b"%PDF-",
        "cut.pdf": good[:300],
        "no-xref.pdf": good[: good.index(b"xref")][:150],
        "noise.pdf": bytes(range(256)) * 400,
        "scanned.pdf": pdf(["", ""]),
        "no-pages.pdf": pdf([]),
        "many-pages.pdf": good.replace(b"/Count 1", b"/Count 1000000"),
        "loop.pdf": good.replace(b"/Kids [4 0 R]", b"/Kids [2 0 R]"),
        "encrypted.pdf": good.replace(b"/Root 1 0 R", b"/Root 1 0 R /Encrypt 3 0 R"),
        "text.pdf": "not a PDF",
        "empty.docx": b"",
        "text.docx": "not a zip",
        "cut.docx": docx(["x"])[:-40],
        "bomb.docx": bomb,
        "many.docx": many,
        "no-document.docx": zipped({"[Content_Types].xml": CONTENT_TYPES}),
        "broken.docx": zipped({"[Content_Types].xml": CONTENT_TYPES, "_rels/.rels": RELATIONS, "word/document.xml": "<w:"}),
        "entities.docx": zipped({"[Content_Types].xml": CONTENT_TYPES, "_rels/.rels": RELATIONS, "word/document.xml": f'<?xml version="1.0"?>{BILLION}<w:document {WORD}>&b;</w:document>'}),
        "nothing.docx": docx([" "]),
        "empty.odt": b"",
        "text.odt": "not a zip",
        "no-content.odt": zipped({"mimetype": "x"}),
        "broken.odt": zipped({"content.xml": "<office:"}),
        "entities.odt": zipped({"content.xml": f"<?xml version='1.0'?>{BILLION}<a {OFFICE}>&b;</a>"}),
        "encrypted.odt": odt("<text:p>x</text:p>", **{"META-INF/manifest.xml": "<m><encryption-data/></m>"}),
        "cut.odt": text[: len(text) // 2],
        "nothing.odt": odt(""),
        "empty.epub": b"",
        "text.epub": "not a zip",
        "no-container.epub": zipped({"mimetype": "application/epub+zip"}),
        "no-package.epub": zipped({"META-INF/container.xml": container.format("gone.opf")}),
        "outside.epub": zipped({"META-INF/container.xml": container.format("../../etc/passwd")}),
        "no-root.epub": zipped({"META-INF/container.xml": "<container/>"}),
        "encrypted.epub": epub(["<p>x</p>"], **{"META-INF/rights.xml": "<r/>"}),
        "entities.epub": zipped({"META-INF/container.xml": f"<?xml version='1.0'?>{BILLION}<c>&b;</c>"}),
        "cut.epub": book[: len(book) // 2],
        "nothing.epub": epub([""]),
        "noise.html": bytes(range(128, 256)) * 100,
        "nothing.html": "<script>x</script>",
        "deep.html": deep,
        "broken.ipynb": "{",
        "no-cells.ipynb": "[]",
        "odd-cells.ipynb": '{"cells": [1, {"source": 5}]}',
        "deep.ipynb": "[" * 100_000,
        "nothing.eml": "Content-Type: image/png\r\n\r\nx",
        "nothing.mbox": "no message",
        "noise.srt": bytes(range(128, 256)),
        "nothing.vtt": "WEBVTT\n",
    }  # fmt: skip


def test_a_hostile_folder_is_read_to_its_end(tmp_path: Path) -> None:
    hostile = hostile_files()
    assert len(hostile) >= 40
    write(tmp_path, hostile)
    real = {
        "z.pdf": pdf([f"Page {n}" for n in range(200)]),
        "z.docx": docx(["Real."]),
        "z.epub": epub(["<p>Real.</p>"]),
        "z.txt": "Real.",
    }
    write(tmp_path, real)
    before = psutil.Process().memory_info().rss
    texts, skipped = read(tmp_path)
    assert psutil.Process().memory_info().rss - before < 150_000_000
    assert set(real) <= set(texts)
    assert set(texts) | set(skipped) == set(real) | set(hostile)
    # What still gave a text is a file that a lenient parser can make something of.
    assert set(texts) - set(real) <= {"many-pages.pdf", "no-xref.pdf", "cut.pdf", "loop.pdf"}
    assert all(skipped[name] for name in set(hostile) - set(texts))
    for name, reason in {
        "scanned.pdf": "scanned",
        "encrypted.pdf": "encrypted",
        "bomb.docx": "more than 200 MB",
        "many.docx": "parts",
        "entities.odt": "entities",
        "encrypted.odt": "encrypted",
        "encrypted.epub": "encrypted",
        "outside.epub": "lacks",
    }.items():
        assert reason in skipped[name], skipped[name]


def test_a_child_that_is_killed_costs_its_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {f"{n}.docx": docx([f"Text {n}."]) for n in range(3)})
    real = apart._Child.frames
    killed: list[int] = []

    def frames(child: apart._Child, path: Path, seconds: float) -> Iterator[list[object]]:
        if path.name == "1.docx":
            killed.append(child.process.pid)
            os.kill(child.process.pid, signal.SIGSEGV)
            child.process.wait()
        return real(child, path, seconds)

    monkeypatch.setattr(apart._Child, "frames", frames)
    texts, skipped = read(tmp_path)
    assert killed
    assert set(texts) == {"0.docx", "2.docx"}
    assert "crashed" in skipped["1.docx"]


def test_a_child_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"a.docx": docx(["Text."])})
    monkeypatch.setattr(apart, "_PATIENCE_SECONDS", (0.1, 0.5))
    monkeypatch.setattr(patience, "PAUSES_SECONDS", (0.0,))
    monkeypatch.setattr(apart, "_COMMAND", ["sleep", "60"])
    texts, skipped = read(tmp_path)
    assert not texts
    assert "said nothing for 0.5 seconds" in skipped["a.docx"]
    assert not apart._idle


def test_who_stops_in_the_middle_leaves_no_child(tmp_path: Path) -> None:
    message = "From a@b Thu Jan  1 00:00:00 2026\nSubject: A\n\nText.\n\n"
    write(tmp_path, {"a.mbox": message * 50})
    documents = iter_documents(tmp_path)
    next(documents)
    documents.close()  # type: ignore[attr-defined]
    assert not apart._idle
    assert not [p for p in psutil.Process().children() if "reading.child" in " ".join(p.cmdline())]


def test_one_child_serves_many_files(tmp_path: Path) -> None:
    write(tmp_path, {f"{n}.docx": docx(["Text."]) for n in range(4)})
    read(tmp_path)
    (child,) = apart._idle
    read(tmp_path)
    assert apart._idle == [child]
