"""What a preparation finds in a dataset, and what it takes out: duplicates, boilerplate, secrets."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from forgellm.data.cleaning.boilerplate import EdgeLines, repeated_over_pages, without_lines
from forgellm.data.cleaning.duplicates import NGRAM, DuplicateFinder, minhash, normalised_hash
from forgellm.data.cleaning.items import Item, Reading
from forgellm.data.cleaning.language import language_of
from forgellm.data.cleaning.sensitive import findings
from forgellm.data.ngrams import words_of

WORDS = [f"word{number}" for number in range(3000)]


def jaccard(first: str, second: str) -> float:
    """Of the sets of word 5-grams, all kept."""
    sets = []
    for text in (first, second):
        words = words_of(text)
        sets.append({tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def changed(text: str, share: float, rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) if rng.random() < share else word for word in text.split())


def test_near_duplicates_are_those_of_a_plain_comparison() -> None:
    rng = random.Random(11)
    originals = [" ".join(rng.choices(WORDS, k=rng.randrange(80, 400))) for _ in range(50)]
    texts = list(originals)
    for number in range(50):
        share = (0.0, 0.005, 0.01, 0.02, 0.2)[number % 5]
        texts.append(changed(originals[number].upper(), share, rng))
    rng.shuffle(texts)
    with DuplicateFinder(0.8) as finder:
        for text in texts:
            finder.add(text)
        found = {item.number: item for item in finder.duplicates()}
    unclear = 0
    for number, text in enumerate(texts):
        likeness = max((jaccard(text, other) for other in texts[:number]), default=0.0)
        if 0.65 < likeness < 0.9:  # where an estimate may fall on either side
            unclear += 1
            continue
        assert (number in found) == (likeness >= 0.9)
        if number in found:
            item = found[number]
            assert item.similarity == pytest.approx(jaccard(text, texts[item.of]), abs=0.15)
            assert item.is_exact == (normalised_hash(text) == normalised_hash(texts[item.of]))
    assert unclear < 30 < len(found)


def test_nothing_is_removed_for_its_likeness_to_what_is_removed_itself() -> None:
    rng = random.Random(2)
    chain = [" ".join(rng.choices(WORDS, k=120))]
    for step in range(12):
        words = chain[-1].split()
        words[9 * step] = "other"
        chain.append(" ".join(words))
    with DuplicateFinder(0.8) as finder:
        for text in [*chain, chain[3]]:
            finder.add(text)
        found = finder.duplicates()
    gone = {item.number for item in found}
    assert gone and all(item.of < item.number and item.of not in gone for item in found)
    assert len(gone) < len(chain) - 1


def test_many_copies_of_one_text_are_all_found() -> None:
    rng = random.Random(4)
    text = " ".join(rng.choices(WORDS, k=300))
    with DuplicateFinder(0.8) as finder:
        for _ in range(200):
            finder.add(changed(text, 0.003, rng))
        assert {item.of for item in finder.duplicates()} == {0}
        assert len(finder.duplicates()) > 190


def test_short_texts_are_compared_whole() -> None:
    assert minhash("Note 1. The tide turns.") is None
    with DuplicateFinder(0.8) as finder:
        for text in (
            "Note 1. The tide turns.",
            "Note 2. The tide turns.",
            "NOTE 1.\n the tide turns.",
        ):
            finder.add(text)
        assert [(item.number, item.of, item.is_exact) for item in finder.duplicates()] == [
            (2, 0, True)
        ]


def pages(count: int, lines: int = 6) -> str:
    rng = random.Random(1)
    made = []
    for number in range(1, count + 1):
        body = [" ".join(rng.choices(WORDS, k=8)) for _ in range(lines)]
        made.append("\n".join([f"Guild report 2024, page {number}", *body, f"— {number} —"]))
    return "\n\n".join(made)


def test_headers_and_numbers_of_pages_are_found_and_nothing_else() -> None:
    text = pages(30)
    numbers = [n for line in repeated_over_pages(text) for n in line.numbers]
    assert len(numbers) == 60
    left = without_lines(text, numbers).splitlines()
    expected = [line for line in text.splitlines() if "Guild" not in line and "—" not in line]
    assert left == expected


def test_a_refrain_within_pages_and_a_short_document_stay() -> None:
    body = "\n".join(["The lamp is lit.", *(f"line {'abc'[n % 3]} {n}" for n in range(4))])
    song = "\n\n".join(f"{' '.join(WORDS[n : n + 4])}\n{' '.join(WORDS[n + 40 : n + 44])}\n{body}\n{WORDS[n]} end\n{WORDS[n + 9]} over" for n in range(20))  # fmt: skip
    assert repeated_over_pages(song) == []
    assert repeated_over_pages(pages(2)) == []


def test_lines_at_the_edge_of_many_documents_are_found() -> None:
    rng = random.Random(6)
    edges = EdgeLines()
    documents = {}
    for number in range(20):
        body = [" ".join(rng.choices(WORDS, k=8)) for _ in range(9)]
        body[4] = "Accept cookies to continue"  # in the middle it is taken for text
        documents[f"{number}.html"] = "\r\n".join(
            [f"Chapter {number}", "Home | Guild | Contact", *body, "© The Mirror Guild"]
        )
        edges.add(f"{number}.html", documents[f"{number}.html"])
    for file, text in documents.items():
        found = {line.text: line.numbers for line in edges.repeated_in(file, text)}
        assert found == {"Home | Guild | Contact": [2], "© The Mirror Guild": [12]}
        assert without_lines(text, [2]) == text.replace("Home | Guild | Contact\r\n", "")
    assert edges.repeated_in("a.py", documents["1.html"]) == []


KEY = "A" + "KIA" + "Z7QK2M5X9W3T8B4C"  # in parts, so that no scanner takes this file for a leak
GITHUB = "gh" + "p_" + "a8K2mZ7qX9wT3bC5dF1gH6jL4nP0rS8vY2eU"
JWT = "eyJ" + "hbGciOiJIUzI1NiJ9.eyJ" + "zdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N"
PEM = "-----BEGIN " + "RSA PRIVATE KEY-----\nMIIEow\nqP\n-----END " + "RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        (f"key is {KEY}, keep", "AWS key", KEY),
        (f"token: {GITHUB}", "GitHub token", GITHUB),
        (f"Bearer {JWT}", "JWT", JWT),
        (f"a\n{PEM}\nb", "private key", PEM),
        ("db = postgres://app:h7Gk2pQz@db.local/x", "password in an address", "h7Gk2pQz"),
        ('"api_key": "q8Zt3LmW0xVbN5kP"', "assigned secret", "q8Zt3LmW0xVbN5kP"),
        ("write to ann.lee+x@mail.example.org.", "e-mail address", "ann.lee+x@mail.example.org"),
    ],
)
def test_secrets_and_addresses_are_found_and_never_shown(text: str, kind: str, value: str) -> None:
    (found,) = findings(f"first line\n{text}")
    assert found.kind == kind
    assert f"first line\n{text}"[found.start : found.end] == value
    assert found.line == (3 if "PRIVATE" in text else 2)
    secret = value.partition("@")[0]
    assert secret not in found.masked and secret[-6:] not in found.masked


@pytest.mark.parametrize(
    "text",
    [
        "The password is: ask your colleague for the passphrase",
        "token: str = tokenizer.encode_everything(text)",
        "secret = os.environ['THE_SECRET_VALUE']",
        "meet me @ noon, or user@localhost, or @someone",
        "The key AKIA is a prefix. sk-learn and sk-image are packages.",
        "https://example.org:8080/a@b",
    ],
)
def test_ordinary_text_is_not_flagged(text: str) -> None:
    assert findings(text) == []


def test_scanning_takes_linear_time_on_hostile_text() -> None:
    for text in ("a." * 90_000, "@" * 90_000, "eyJ" * 50_000, "secret" * 20_000, "-----BEGIN " * 9_000):  # fmt: skip
        findings(text)


def test_languages() -> None:
    german = "Der Wächter zählt jeden Abend die grünen Boote und schreibt die Zahl in ein Buch."
    assert language_of(german, "a.txt") == "de"
    assert language_of("The keeper counts the green boats every evening.", "b.pdf") == "en"
    assert language_of("12 34", "a.txt") == "unknown"
    assert language_of("def f(): return 1", "a.py") == "code"


def test_whether_a_folder_holds_conversations_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("text")
    assert Reading.of(tmp_path, None).kind == "documents"
    (tmp_path / "b.jsonl").write_text('{"text": "a", "question": "b", "answer": "c"}\n')
    assert Reading.of(tmp_path, None).kind == "documents"
    (tmp_path / "c.jsonl").write_text('{"x": 1}\n{"question": "b", "answer": "c"}\n')
    reading = Reading.of(tmp_path, None)
    assert reading.kind == "conversations"
    items = list(reading.items(lambda done, task: None, ""))
    assert items[-1] == Item("c.jsonl", 2, "b\nc", {"question": "b", "answer": "c"})
    assert ("a.md", "documents are learned with training_type cpt") in [
        (s.source, s.reason) for s in reading.report.skipped
    ]


def test_rows_that_no_parser_takes_are_skipped_by_their_reason(tmp_path: Path) -> None:
    good = {"question": "b", "answer": "c", "remark": 1}
    deep = json.dumps(good)[:-1] + ', "x": ' + "[" * 900 + "]" * 900 + "}"
    odd = [json.dumps(good | more) for more in ({"history": [["a"]]}, {"answer": ["x", "y"]})]
    (tmp_path / "a.jsonl").write_text("\n".join([json.dumps(good), deep, *odd]))
    reading = Reading.of(tmp_path, None)
    (item,) = reading.items(lambda done, task: None, "")
    assert item.texts == ["b", "c"]
    assert [(s.reason.split(",")[0], s.rows) for s in reading.report.skipped] == [
        ("nested too deeply", 1),
        ("an entry of the history has not two parts", 1),
        ("the answer is a list of alternatives", 1),
    ]
    assert [(n.reason, n.rows) for n in reading.report.notes] == [
        ("the column 'remark' is not used", 1)
    ]


def test_every_name_of_a_secret_is_known() -> None:
    names = (
        "secret token PASSWD password pwd api_key apiKey api-key access_key PRIVATE-KEY credentials"
    )
    for name in names.split():
        (found,) = findings(f"MY_{name} = q8Zt3LmW0xVbN5kP")
        assert found.kind == "assigned secret"
