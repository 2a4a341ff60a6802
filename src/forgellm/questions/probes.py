"""Probe questions from documents alone: a sentence cut before something that only it can end with."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from forgellm.atomic import storage_errors, write_json
from forgellm.data.documents import ReadReport, iter_documents
from forgellm.errors import Conflict, DataError
from forgellm.questions.agreement import telling_words
from forgellm.questions.facts import Corpus, Fact, facts_of
from forgellm.questions.held_out import write_without
from forgellm.questions.passages import Span, seeded_key, sentence_spans

Form = Literal["choice", "cloze", "both"]
MAX_SENTENCES = 200_000
NUM_DISTRACTORS = 3
_ALIKE = 0.8
_SHARED_WORDS = 2
_NEAREST = 12
_AS_FREQUENT = 2


@dataclass(frozen=True)
class _Chosen:
    """A fact to ask for, whether it is said elsewhere in other words, and sentences like its own."""

    fact: Fact
    is_restated: bool
    copies: tuple[int, ...]
    distractors: tuple[str, ...]


def make_probes(
    folder: Path,
    out: Path,
    *,
    num: int = 100,
    seed: int = 42,
    form: Form = "choice",
    hold_out: Path | None = None,
) -> dict[str, Any]:
    """Write probes about the documents of `folder` into the file `out`; returns the report in it.

    Facts that are said elsewhere in other words come first. With `hold_out`, a copy of the dataset
    without the chosen sentences is made there. The same for the same documents and seed.
    Raises DataError if nothing can be asked, Conflict if `hold_out` exists, DiskFull.
    """
    if hold_out is not None and hold_out.exists():
        raise Conflict(
            f"dataset/{hold_out.name} exists already", suggestion="Remove it, or rename it."
        )
    corpus, is_complete = _read(folder)
    chosen, groups = _choose(corpus, num, seed)
    if not chosen:
        raise DataError(
            "Nothing was found in the documents that can be asked for",
            suggestion="Probes need sentences with dates, numbers, names or rare words, and at"
            " least four different ones of a kind.",
        )
    spans = [corpus.sentences[number] for item in chosen for number in item.copies]
    report = {
        "dataset": folder.name,
        "seed": seed,
        "sentences": len(corpus.sentences),
        "is_complete": is_complete,
        "facts": len(chosen),
        "restated": sum(item.is_restated for item in chosen),
        "kinds": dict(Counter(item.fact.kind for item in chosen)),
        "baselines": _baselines(chosen, groups),
        "held_out_in": None if hold_out is None else f"dataset/{hold_out.name}",
        "spans": [span.as_json() for span in spans],
    }
    if hold_out is not None:
        _write_copy(folder, hold_out, spans)
    probes = [probe for item in chosen for probe in _probes(item, form)]
    write_json(out, {"about": report, "probes": probes})
    return report


def _read(folder: Path) -> tuple[Corpus, bool]:
    sentences: list[Span] = []
    for document in iter_documents(folder, ReadReport()):
        sentences.extend(sentence_spans(document))
        if len(sentences) > MAX_SENTENCES:
            return Corpus(sentences[:MAX_SENTENCES]), False
    return Corpus(sentences), True


def _choose(corpus: Corpus, num: int, seed: int) -> tuple[list[_Chosen], dict[str, Counter[str]]]:
    """One fact a sentence, in a seeded order; and how often each answer of a group occurs."""
    facts = list(facts_of(corpus))
    groups: dict[str, Counter[str]] = {}
    for fact in facts:
        groups.setdefault(fact.group, Counter())[fact.answer] += 1
    found: list[_Chosen] = []
    seen: set[Span] = set()
    for fact in sorted(facts, key=lambda fact: seeded_key(fact.sentence, seed)):
        if fact.sentence in seen:
            continue
        distractors = _distractors(fact, groups[fact.group], seed)
        if len(distractors) == NUM_DISTRACTORS:
            copies, is_restated = _elsewhere(fact, corpus)
            found.append(_Chosen(fact, is_restated, copies, distractors))
            seen.update(corpus.sentences[number] for number in copies)
    found.sort(key=lambda item: not item.is_restated)
    return found[:num], groups


def _distractors(fact: Fact, group: Counter[str], seed: int) -> tuple[str, ...]:
    """A seeded few of the answers of the same group that are about as frequent and as long, two of
    them at least as frequent if there are such: or the commonest option would mostly be right."""
    answer, own = fact.answer.casefold(), group[fact.answer]
    inside = fact.sentence.text.casefold()
    others = [
        other
        for other in group
        if other.casefold() not in inside and answer not in other.casefold()
    ]

    def unlike(other: str) -> float:
        return abs(math.log(group[other] / own)) + abs(len(other) - len(answer)) / 5

    nearest = sorted(others, key=lambda other: (unlike(other), other))
    commoner = [other for other in nearest if group[other] >= own][:_NEAREST]
    name = fact.sentence.source

    def seeded(other: str) -> bytes:
        return seeded_key(Span(f"{name}\0{other}", fact.sentence.start, 0, ""), seed)

    found = sorted(commoner, key=seeded)[:_AS_FREQUENT]
    found += sorted((x for x in nearest[:_NEAREST] if x not in found), key=seeded)
    return tuple(found[:NUM_DISTRACTORS])


def _elsewhere(fact: Fact, corpus: Corpus) -> tuple[tuple[int, ...], bool]:
    """Numbers of the sentences that say the same in nearly the same words, its own among them; and
    whether another says it in other words: it has the answer and two more of its telling words."""
    words = frozenset(telling_words(fact.sentence.text))
    answer = telling_words(fact.answer)
    copies, is_restated = [], False
    for number in corpus.with_words(answer):
        sentence = corpus.sentences[number]
        there = frozenset(telling_words(sentence.text))
        if sentence == fact.sentence or len(words & there) >= _ALIKE * len(words | there):
            copies.append(number)
        elif len((words & there).difference(answer)) >= _SHARED_WORDS:
            is_restated = True
    return tuple(copies), is_restated


def _probes(item: _Chosen, form: Form) -> list[dict[str, Any]]:
    fact, text = item.fact, item.fact.sentence.text
    rest = text[fact.start + len(fact.answer) :]
    common = {"stem": fact.stem, "answer": fact.answer}
    about = {
        "kind": fact.kind,
        "restated": item.is_restated,
        "source": fact.sentence.as_json(),
    }
    choice = {
        "question": f"{text[: fact.start]}____{rest}",
        **common,
        "distractors": list(item.distractors),
        **about,
    }
    cloze = {"question": "", **common, "match": "contains", **about}
    if form == "both":
        return [choice, cloze]
    return [choice] if form == "choice" else [cloze]


def _baselines(chosen: list[_Chosen], groups: dict[str, Counter[str]]) -> dict[str, float]:
    """How often one would be right without knowing anything: at random; by always taking the
    option that the documents have most often; by always taking the longest. Ties count in part."""
    frequent, longest = 0.0, 0.0
    for item in chosen:
        options = (item.fact.answer, *item.distractors)
        counts = [groups[item.fact.group][option] for option in options]
        lengths = [len(option) for option in options]
        frequent += (counts[0] == max(counts)) / counts.count(max(counts))
        longest += (lengths[0] == max(lengths)) / lengths.count(max(lengths))
    return {
        "chance": round(1 / (1 + NUM_DISTRACTORS), 4),
        "most_frequent": round(frequent / len(chosen), 4),
        "longest": round(longest / len(chosen), 4),
    }


def _write_copy(folder: Path, target: Path, spans: list[Span]) -> None:
    """Whole, or not there."""
    with storage_errors(target.name):
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            work.chmod(0o755)
            write_without(folder, work, spans)
            work.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
