import json
import os
import shutil
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forgellm.data.documents import (
    ReadReport,
    dataset_files,
    dataset_fingerprint,
    dataset_overview,
    iter_documents,
)

ODD_TEXT = " \tlead\r\n\r\n  x = 1\n\u00a0❄️ end\r"


def read(folder: Path) -> tuple[dict[str, str], dict[str, str], ReadReport]:
    """Texts by source, reasons by source, and the report."""
    report = ReadReport()
    texts = {document.source: document.text for document in iter_documents(folder, report)}
    return texts, {item.source: item.reason for item in report.skipped}, report


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


@pytest.mark.parametrize("name", ["a.txt", "a.MD", "a.rst", "a.py", "sub/deep/a.rs", "a.yaml"])
def test_plain_file_is_one_document_as_written(tmp_path: Path, name: str) -> None:
    texts, skipped, report = read(write(tmp_path, {name: ODD_TEXT}))
    assert texts == {name: ODD_TEXT} and not skipped
    assert (report.files, report.documents, report.text_bytes) == (1, 1, len(ODD_TEXT.encode()))


def test_order_is_by_path_whatever_the_folder_order(tmp_path: Path) -> None:
    names = ["b.txt", "a/z.txt", "a.txt", "B.txt", "a/b/c.txt"]
    texts, _, _ = read(write(tmp_path, dict.fromkeys(names, "text")))
    assert list(texts) == sorted(names)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_only_the_byte_order_mark_is_removed(tmp_path: Path, encoding: str) -> None:
    raw = ODD_TEXT.encode(encoding)
    if encoding == "utf-16-le":
        raw = b"\xff\xfe" + raw
    assert read(write(tmp_path, {"a.txt": raw}))[0] == {"a.txt": ODD_TEXT}


def test_what_is_left_out_is_reported(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "latin.txt": "café".encode("latin-1"),
            "image.png": b"\x89PNG",
            "noname": "text",
            "empty.txt": "",
            "blank.md": " \n\t",
            ".hidden.txt": "secret",
            ".git/config.txt": "secret",
            "good.txt": "good",
        },
    )
    texts, skipped, _ = read(tmp_path)
    assert list(texts) == ["good.txt"]
    assert skipped == {
        "latin.txt": "not UTF-8, nor UTF-16 or UTF-32: save it as UTF-8",
        "image.png": "unsupported type",
        "noname": "unsupported type",
        "empty.txt": "empty",
        "blank.md": "empty",
    }


def test_links_are_followed_only_inside(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside", {"secret.txt": "secret"})
    dataset = write(tmp_path / "dataset", {"real.txt": "real"})
    (dataset / "inner.txt").symlink_to(dataset / "real.txt")
    (dataset / "outer.txt").symlink_to(outside / "secret.txt")
    (dataset / "folder").symlink_to(outside)
    (dataset / "dead.txt").symlink_to(dataset / "nothing.txt")
    (dataset / "loop").symlink_to(dataset)
    texts, skipped, _ = read(dataset)
    assert texts == {"real.txt": "real", "inner.txt": "real"}
    assert set(skipped) == {"outer.txt", "folder", "dead.txt", "loop"}
    assert skipped["outer.txt"] == "link leading outside the dataset"


def test_pipe_does_not_block_the_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    assert read(tmp_path)[1] == {"pipe.txt": "not a regular file"}


def test_name_that_is_not_utf8_is_shown_escaped(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "w") as file:
        file.write("text")
    texts, _, _ = read(tmp_path)
    assert list(texts.values()) == ["text"]
    json.dumps(list(texts)).encode()
    assert len(dataset_fingerprint(tmp_path)) == 64


def test_html_becomes_its_text(tmp_path: Path) -> None:
    page = """<html><head><title>T</title><style>a{}</style></head><body><script>bad()</script>
    <h1>The <b>mill</b></h1><p>It stands
    by &amp; by.<br>Next line</p><ul><li>one</li><li>two</li></ul><table><tr><td>1</td><td>2</td></tr></table>
    <pre>def f():\n    return 1</pre></body></html>"""
    assert read(write(tmp_path, {"a.html": page}))[0]["a.html"] == (
        "The mill\nIt stands by & by.\nNext line\none\ntwo\n1\t2\ndef f():\n    return 1"
    )


def test_html_charset_is_honoured(tmp_path: Path) -> None:
    page = '<html><head><meta charset="iso-8859-1"></head><body>café</body></html>'
    assert read(write(tmp_path, {"a.htm": page.encode("latin-1")}))[0] == {"a.htm": "café"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('["one", "two"]', {"a.json:1": "one", "a.json:2": "two"}),
        ('[{"content": "one"}, {"Text": "two"}]', {"a.json:1": "one", "a.json:2": "two"}),
        ('{"text": "one\\r\\n", "id": 7}', {"a.json": "one\r\n"}),
        ('{"port": 80}', {"a.json": '{"port": 80}'}),
        ("[1, 2]", {"a.json": "[1, 2]"}),
    ],
)
def test_json_shapes(tmp_path: Path, content: str, expected: dict[str, str]) -> None:
    assert read(write(tmp_path, {"a.json": content}))[0] == expected


def test_broken_json_names_the_line(tmp_path: Path) -> None:
    assert read(write(tmp_path, {"a.json": '{\n"text": oops}'}))[1] == {
        "a.json": "broken JSON at line 2"
    }


def test_jsonl_rows_and_bad_rows(tmp_path: Path) -> None:
    lines = [
        json.dumps({"text": ODD_TEXT}),
        "{broken",
        "",
        json.dumps({"body": "b", "id": 1}),
        json.dumps({"messages": []}),
        json.dumps({"text": "", "id": 1}),
        '{"text": "bad \\ud800 surrogate"}',
        json.dumps("plain"),
    ]
    raw = "\n".join(lines).encode() + b'\n{"text": "caf\xe9"}\n'
    texts, _, report = read(write(tmp_path, {"a.jsonl": raw}))
    assert texts == {"a.jsonl:1": ODD_TEXT, "a.jsonl:4": "b", "a.jsonl:8": "plain"}
    assert {(item.reason, item.rows) for item in report.skipped} == {
        ("broken JSON, first at 2", 1),
        ("half of a character in it (a lone surrogate), first at 7", 1),
        ("not UTF-8, first at 9", 1),
        ("no text field, first at 5", 1),
        ("empty, first at 6", 1),
    }


def test_csv_text_column_by_name(tmp_path: Path) -> None:
    content = 'id,Text\n1,"two ""lines""\r\nhere"\n2,b\n3\n'
    texts, skipped, _ = read(write(tmp_path, {"a.csv": content}))
    assert texts == {"a.csv:1": 'two "lines"\r\nhere', "a.csv:2": "b"}
    assert skipped == {"a.csv": "fewer cells than the header has, first at 3"}


def test_csv_only_wordy_column(tmp_path: Path) -> None:
    texts, _, _ = read(write(tmp_path, {"a.csv": "\ufeffid;note;price\n1;hello, you;2.5\n2;b;3\n"}))
    assert texts == {"a.csv:1": "hello, you", "a.csv:2": "b"}


def test_csv_without_a_clear_column_is_skipped(tmp_path: Path) -> None:
    assert read(write(tmp_path, {"a.csv": "name,town\nAnn,Lisk\n"}))[1] == {
        "a.csv": "no text column"
    }


def test_csv_row_that_is_not_utf8_costs_only_itself(tmp_path: Path) -> None:
    texts, skipped, _ = read(
        write(tmp_path, {"a.csv": b"text\ngood\ncaf\xe9 \xf0\x9f\x99\x82\nmore\n"})
    )
    assert list(texts.values()) == ["good", "more"]
    assert skipped == {"a.csv": "not UTF-8, first at 2"}


def test_csv_cell_longer_than_the_library_default(tmp_path: Path) -> None:
    cell = "x y " * 50_000
    assert list(read(write(tmp_path, {"a.csv": f"text\n{cell}\n"}))[0].values()) == [cell]


def test_parquet_columns(tmp_path: Path) -> None:
    words = pa.array(["a", None, ODD_TEXT])
    pq.write_table(pa.table({"id": [1, 2, 3], "story": words}), tmp_path / "only.parquet")
    pq.write_table(
        pa.table({"x": words, "body": words.dictionary_encode()}), tmp_path / "named.parquet"
    )
    pq.write_table(pa.table({"x": words, "y": words}), tmp_path / "unclear.parquet")
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "only.parquet").read_bytes()[:200])
    texts, skipped, _ = read(tmp_path)
    assert texts == {
        "named.parquet:1": "a",
        "named.parquet:3": ODD_TEXT,
        "only.parquet:1": "a",
        "only.parquet:3": ODD_TEXT,
    }
    assert skipped["unclear.parquet"] == "no text column"
    assert skipped["torn.parquet"].startswith("broken Parquet")
    assert skipped["only.parquet"] == "no text field, first at 2"


def test_large_jsonl_is_streamed(tmp_path: Path) -> None:
    line = json.dumps({"text": "word " * 200}) + "\n"
    (tmp_path / "big.jsonl").write_text(line * (20_000_000 // len(line)))
    tracemalloc.start()
    count = sum(1 for _ in iter_documents(tmp_path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count > 19_000
    assert peak < 2_000_000


def test_fingerprint_is_of_names_and_contents_alone(tmp_path: Path) -> None:
    first = write(tmp_path / "first", {"a.txt": "one", "b/c.txt": "two"})
    second = tmp_path / "elsewhere"
    shutil.copytree(first, second)
    os.utime(second / "a.txt", (1, 1))
    assert dataset_fingerprint(first) == dataset_fingerprint(second)
    (second / "a.txt").write_text("onf")
    assert dataset_fingerprint(first) != dataset_fingerprint(second)
    (second / "a.txt").rename(second / "d.txt")
    (second / "d.txt").write_text("one")
    assert dataset_fingerprint(first) != dataset_fingerprint(second)


def test_overview_counts_readable_files(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "12345", "b/c.md": "123", "d.png": "1234567"})
    overview = dataset_overview(tmp_path)
    assert (overview.file_count, overview.total_size_bytes) == (2, 8)
    assert [item.source for item in dataset_files(tmp_path).skipped] == ["d.png"]
