"""The readers of rows, which documents and conversations share: files as other tools write them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgellm.data.reading.json_rows import json_line, json_value
from forgellm.data.reading.reader import Unreadable, decode
from forgellm.data.reading.row_readers import ROW_READERS

TEXT = "Das Schiff löscht vier Fässer — am Mittag, 🛢 für Ωmega.\n"


def read(path: Path, content: bytes | str) -> tuple[list[Any], dict[int, str]]:
    """The rows of a file, and why others are left out."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    skipped: dict[int, str] = {}
    rows = ROW_READERS[path.suffix](path, lambda reason, number: skipped.update({number: reason}))
    return [row for _, row in rows], skipped


@pytest.mark.parametrize(
    "encoding", "utf-8 utf-8-sig utf-16 utf-16-le utf-16-be utf-32 utf-32-le utf-32-be".split()
)
def test_text_is_decoded_with_and_without_a_mark(encoding: str) -> None:
    for text in (TEXT, TEXT * 400, "plain English, and nothing else\n" * 3):
        assert decode(text.encode(encoding)) == text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("Fässer".encode("latin-1"), "save it as UTF-8"),
        (b"words\0and words of a binary file", "NUL"),
        (b"\x7fELF\x02\x01\x01" + bytes(20) + b"\x03\0>\0\x01\0\0\0", "NUL"),
        ("gerade".encode("utf-16") + b"x", "broken UTF-16"),
        (b"twenty-six bytes of text\xff\0", "NUL"),
    ],
)
def test_what_is_no_text_is_refused_with_a_reason(content: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        decode(content)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32-be"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv"])
def test_tables_and_json_in_any_encoding(tmp_path: Path, encoding: str, suffix: str) -> None:
    rows = [{"question": f"Wo {i}?", "answer": f"Fässer, {i}"} for i in range(30)]
    if suffix == ".json":
        text = json.dumps(rows, ensure_ascii=False)
    elif suffix == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        out = io.StringIO()
        writer = csv.DictWriter(out, rows[0], delimiter="\t" if suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
        text = out.getvalue()
    assert read(tmp_path / f"a{suffix}", text.encode(encoding)) == (rows, {})


@pytest.mark.parametrize(
    ("text", "rows", "skipped"),
    [
        ('"a, b, c";"text"\n"x";"y"\n', [{"a, b, c": "x", "text": "y"}], {}),
        ("sep=;\na;b\n1,5;2\n", [{"a": "1,5", "b": "2"}], {}),
        ("a|b\n1|2\n", [{"a": "1", "b": "2"}], {}),
        ("a,b\n1,2,\n\n3,4\n", [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}], {}),
        ("a,b\n1,2,3\n4,5\n6\n", [{"a": "4", "b": "5"}], {1: "more cells", 3: "fewer cells"}),
        ('a,b\n1,"2\n3\n4"\n5,6\n', [{"a": "1", "b": "2\n3\n4"}, {"a": "5", "b": "6"}], {}),
        ('a,b\n1,"2\n3,4\n', [{"a": "3", "b": "4"}], {1: "never closed"}),
        ("a,a,\n1,2,3\n", [{"a": "1", "a (column 2)": "2", "column 3": "3"}], {}),
        ("a,b\n1,x\0y\n3,4\n", [{"a": "3", "b": "4"}], {1: "NUL"}),
        ("a\n1\n", [{"a": "1"}], {}),
        ("", [], {}),
    ],
)
def test_csv_as_programs_and_people_write_it(
    tmp_path: Path, text: str, rows: list[dict[str, str]], skipped: dict[int, str]
) -> None:
    found, reasons = read(tmp_path / "a.csv", text)
    assert found == rows
    assert reasons.keys() == skipped.keys()
    assert all(part in reasons[number] for number, part in skipped.items())


def test_a_tsv_is_divided_by_tabs_whatever_else_stands_in_it(tmp_path: Path) -> None:
    text = "id\ttext, or prose, or verse\n1\tThe mill; turns.\n"
    expected = [{"id": "1", "text, or prose, or verse": "The mill; turns."}]
    assert read(tmp_path / "a.tsv", text) == (expected, {})


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(CELL, CELL, st.just("end")), min_size=1, max_size=6),
    st.sampled_from(",;\t|"),
)
def test_what_the_csv_module_writes_is_read_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]], delimiter: str
) -> None:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([("first", "second", "last"), *rows])
    found, skipped = read(tmp_path_factory.mktemp("csv") / "a.csv", out.getvalue())
    # In a cell, a line end of another kind comes as it was; nothing else is touched.
    assert [tuple(row.values()) for row in found] == rows and not skipped


ROWS = [{"text": "one", "n": 1}, {"text": "two", "n": 2}]


@pytest.mark.parametrize(
    "write",
    [
        json.dumps,
        lambda rows: "\n".join(map(json.dumps, rows)),
        lambda rows: "\n\n".join(json.dumps(row, indent=2) for row in rows),
        lambda rows: json.dumps({"data": rows}, indent=1),
        lambda rows: json.dumps({"version": "1", "rows": rows, "licence": None}),
        lambda rows: json.dumps({"train": rows}),
        lambda rows: "\ufeff" + json.dumps(rows, indent=4),
        lambda rows: json.dumps({name: [row[name] for row in rows] for name in rows[0]}),
        lambda rows: json.dumps(
            {"columns": [*rows[0]], "index": [0, 1], "data": [[*row.values()] for row in rows]}
        ),
        lambda rows: json.dumps({str(i): row for i, row in enumerate(rows)}),
        lambda rows: json.dumps(
            {name: {str(i): row[name] for i, row in enumerate(rows)} for name in rows[0]}
        ),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_rows_are_found_in_every_layout(
    tmp_path: Path, write: Callable[[Any], str], suffix: str
) -> None:
    text = write(ROWS)
    found, skipped = read(tmp_path / f"a{suffix}", text)
    whole = len(found) == 1 and suffix == ".jsonl"  # in JSON lines a value in a line is a row
    assert found == [json.loads(text.lstrip("\ufeff"))] if whole else found == ROWS, found
    assert not skipped


def test_bad_rows_cost_only_themselves_and_say_why(tmp_path: Path) -> None:
    lines = [
        b'{"text": "cut off',
        b'{"text": "one", "score": NaN}',
        b'{"text": "F\xe4sser"}',
        b'{"text": "half \\ud83d"}',
        b'{"text": "whole \\ud83d\\ude00"}',
        b'{"text": "cut off',
        b'{"text": "a\\u0000b"}',
        b'{"n": 123456789012345678901234567890}',
        b"[" * 5000,
    ]
    found, skipped = read(tmp_path / "a.jsonl", b"\n".join(lines))
    expected = [
        {"text": "one", "score": None},
        {"text": "whole 😀"},
        {"n": 123456789012345678901234567890},
    ]
    assert found == expected
    parts = {1: "broken JSON", 3: "not UTF-8", 4: "lone surrogate"}
    parts |= {6: "broken JSON", 7: "NUL", 9: "broken JSON"}
    assert skipped.keys() == parts.keys()
    assert all(part in skipped[number] for number, part in parts.items())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[{"a": 1},\n]', "line 1: a comma that nothing follows"),
        ('[{"a": 1} // one\n]', "line 1: comments"),
        ("[{'a': 1}]", "line 1: texts stand in double quotes"),
        ('[{"a": "b\nc"}]', r"written \\n"),
        ('[{"a": 1}', "ends too early"),
        ('{"train": [{"a": 1}], "test": [{"a": 2}]}', "a file of its own"),
    ],
)
def test_a_broken_file_says_where_and_what(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        read(tmp_path / "a.json", text)


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_a_line_holds_the_value_it_was_made_of(value: Any) -> None:
    found = json_value(json_line(value).decode())
    if "inf" not in json.dumps(value).lower():
        assert found == value


def test_parquet_texts_of_every_type_and_lists_of_turns(tmp_path: Path) -> None:
    texts = ["one", None, "drei Fässer"]
    turns = [[{"role": "user", "content": "a"}], None, []]
    for kind in (pa.string(), pa.large_string(), pa.string_view(), None):
        column = pa.array(texts).dictionary_encode() if kind is None else pa.array(texts, kind)
        table = pa.table({"text": column, "turns": turns})
        pq.write_table(table, tmp_path / "a.parquet")
        found, skipped = read(tmp_path / "b.parquet", (tmp_path / "a.parquet").read_bytes())
        assert [row["text"] for row in found] == texts and not skipped
        assert [row["turns"] for row in found] == turns
    with pytest.raises(Unreadable, match="broken Parquet"):
        read(tmp_path / "c.parquet", b"PAR1 but nothing else")
