"""From documents to questions: pairs that a model writes, each kept only if it holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from forgellm.data.datasets import find_dataset
from forgellm.data.documents import ReadReport, dataset_fingerprint
from forgellm.errors import DataError, InvalidRequest
from forgellm.paths import RUN_NAME, Workspace
from forgellm.questions.agreement import NearDuplicates, agree, is_grounded, telling_words
from forgellm.questions.asker import Asker
from forgellm.questions.journal import KEPT, Journal
from forgellm.questions.passages import Passages, Span, seeded_key, seeded_passages
from forgellm.questions.prompts import Pair, answer_in, answering, knowing, pair_in, writing
from forgellm.schema.generation import Sampling
from forgellm.schema.questions import QuestionsRequest

OnProgress = Callable[[float, str], None]
_ABOUT_THE_TEXT = frozenset({"text", "passage", "paragraph", "excerpt", "sentence", "author"})
_LATER_TEMPERATURE = 0.6


class Outcome(NamedTuple):
    """What became of an attempt. `row` is there if the pair is kept."""

    reason: str
    row: dict[str, Any] | None = None


def make_questions(
    workspace: Workspace, request: QuestionsRequest, asker: Asker, on_progress: OnProgress
) -> dict[str, Any]:
    """Ask for pairs about the passages of a dataset, in a seeded order, until enough are kept or
    every passage had its turns. What is there already of an earlier call is kept and continued.

    Returns the report that is in the folder too. `on_progress` may raise to end the work; nothing
    is lost. Raises DatasetNotFound, DataError, InvalidRequest, Conflict, DiskFull, Unavailable.
    """
    source = find_dataset(workspace, request.dataset)
    target = _target(workspace, request.name, source)
    reading = ReadReport()
    passages = seeded_passages(source, request.seed, reading)
    if not passages.chosen:
        raise DataError(
            f"No passage long enough for a question was found in the dataset {request.dataset!r}",
            suggestion="Put documents with whole sentences into it.",
        )
    settings = _settings(request, asker.name, dataset_fingerprint(source))
    with Journal(target, settings) as journal:
        writer = _Writer(request, asker, journal)
        try:
            writer.work_through(passages, on_progress)
        finally:
            report = _report(settings, passages, reading, journal)
            journal.report(report)
    return report


class _Writer:
    """Makes attempts, each a function of the passage, its number and the pairs before it."""

    def __init__(self, request: QuestionsRequest, asker: Asker, journal: Journal) -> None:
        self._request, self._asker, self._journal = request, asker, journal
        self._seen = NearDuplicates()
        for question in journal.questions:
            self._seen.add(question)

    def work_through(self, passages: Passages, on_progress: OnProgress) -> None:
        per_passage, journal = self._request.per_passage, self._journal
        num_attempts = per_passage * len(passages.chosen)
        for number in range(journal.num_asked, num_attempts):
            if self._request.limit is not None and journal.num_kept >= self._request.limit:
                break
            on_progress(self._progress(number, num_attempts), _in_words(journal, num_attempts))
            turn, place = divmod(number, len(passages.chosen))
            journal.add(*self._attempt(passages.chosen[place], turn))
        on_progress(1.0, _in_words(journal, num_attempts))

    def _progress(self, number: int, num_attempts: int) -> float:
        limit = self._request.limit
        return max(number / num_attempts, self._journal.num_kept / limit if limit else 0.0)

    def _attempt(self, passage: Span, turn: int) -> Outcome:
        temperature = _LATER_TEMPERATURE if turn else 0.0
        pair = pair_in(
            self._asker.ask(writing(passage.text), self._sampling(passage, turn, temperature))
        )
        if pair is None:
            return Outcome("no pair in what the model said")
        if problem := problem_of(pair, passage.text):
            return Outcome(problem)
        if self._seen.is_near(pair.question):
            return Outcome("nearly the same as an earlier question")
        given = self._answer(answering(passage.text, pair.question), passage, turn)
        if not agree(pair.answer, given):
            return Outcome("asked again with the text, the model answers otherwise")
        row = _row(pair, passage, self._asker.name)
        if self._request.known != "ignore":
            known = agree(pair.answer, self._answer(knowing(pair.question), passage, turn))
            if known and self._request.known == "drop":
                return Outcome("answered without the text too")
            row["known"] = known
        self._seen.add(pair.question)
        return Outcome(KEPT, row)

    def _answer(self, prompt: Any, passage: Span, turn: int) -> str:
        return answer_in(self._asker.ask(prompt, self._sampling(passage, turn, 0.0)))

    def _sampling(self, passage: Span, turn: int, temperature: float) -> Sampling:
        seed = int.from_bytes(seeded_key(passage, self._request.seed + turn)[:3], "little")
        return Sampling(
            max_tokens=self._request.max_tokens,
            temperature=temperature,
            top_p=0.95,
            repetition_penalty=1.0,
            frequency_penalty=0.0,
            presence_penalty=0.0,
            seed=seed,
        )


def problem_of(pair: Pair, text: str) -> str | None:
    """What can be found wrong with a pair without asking the model again."""
    words = telling_words(pair.question)
    if not pair.question.rstrip("\"'”’) ").endswith(("?", "？", "؟")) or len(words) < 2:
        return "not a question that can stand alone"
    if _ABOUT_THE_TEXT & set(words):
        return "asks about the text as such"
    if set(telling_words(pair.answer)) <= set(words):
        return "the question gives the answer away"
    if not is_grounded(pair.answer, text):
        return "the answer's words are not in the text"
    return None


def _row(pair: Pair, passage: Span, model: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": pair.question},
            {"role": "assistant", "content": pair.answer},
        ],
        "source": passage.as_json(),
        "model": model,
    }


def _target(workspace: Workspace, name: str, source: Path) -> Path:
    target = workspace.datasets / name
    if not RUN_NAME.fullmatch(name) or target.resolve().parent != workspace.datasets.resolve():
        raise InvalidRequest(
            "This cannot be the name of a dataset",
            suggestion="Use letters, digits, dots, dashes and underscores.",
        )
    if target.resolve() == source.resolve():
        raise InvalidRequest("The questions need a folder of their own")
    return target


def _settings(request: QuestionsRequest, model: str, fingerprint: str) -> dict[str, Any]:
    """What decides the attempts. The limit is no part of it: it may be raised."""
    return {
        **request.model_dump(exclude={"name", "limit"}),
        "model": model,
        "fingerprint": fingerprint,
    }


def _report(
    settings: dict[str, Any], passages: Passages, reading: ReadReport, journal: Journal
) -> dict[str, Any]:
    return {
        "settings": settings,
        "passages": passages.num_found,
        "passages_chosen": len(passages.chosen),
        "asked": journal.num_asked,
        "kept": journal.num_kept,
        "outcomes": dict(journal.outcomes.most_common()),
        "skipped": [f"{item.source}: {item.reason}" for item in reading.skipped[:100]],
    }


def _in_words(journal: Journal, num_attempts: int) -> str:
    return f"{journal.num_asked} of at most {num_attempts} asked, {journal.num_kept} kept"
