"""Whether what a run is judged by stands in the text that it learns: looked for before it starts.

A probe or a document of general text blocks the run alone; validation documents do where most of
them are copies, since a few near copies are usual in people's documents. Conversations may share
most of their words (a system prompt), so that theirs are only told of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

from forgellm.data.documents import Document
from forgellm.data.overlap import HeldOut, Overlap, OverlapIndex
from forgellm.data.prepared import PreparedData, TokenText
from forgellm.data.tokenizer import Tokenizer
from forgellm.errors import DataError
from forgellm.evaluation.probe_files import Probe
from forgellm.evaluation.scoring import no_step
from forgellm.evaluation.suite import Suite
from forgellm.schema.recipe import Recipe

# A shorter sentence may stand in a text by chance.
MIN_PROBE_WORDS = 8
# A document counts as a copy when so many of its 13-word sequences are in the training text.
COPY_SHARE = 0.8
# Validation documents that may be copies before the loss on them says nothing any more.
MAX_COPIES = 0.5
MAX_TEXT_BYTES = 200_000_000
_SHOWN = 5


def overlap_warnings(
    data: PreparedData,
    suite: Suite,
    tokenizer: Tokenizer,
    recipe: Recipe,
    on_step: Callable[[], None] = no_step,
) -> list[str]:
    """What the user should know; with `allow_overlap` also what else would block the run.

    `on_step` is called before each document of the training text. Raises DataError.
    """
    probes = list(_probe_texts(suite))
    general = list(_general_texts(suite))
    validation = [
        HeldOut(f"validation document {number}", text)
        for number, text in enumerate(data.texts.validation.documents(tokenizer), 1)
    ]
    index = OverlapIndex([*probes, *general, *validation])
    num_bytes = 0
    cut = []
    for document in _training_documents(data, tokenizer):
        on_step()
        num_bytes += len(document.text.encode())
        if num_bytes > MAX_TEXT_BYTES:
            cut = [f"Overlap was looked for in the first {MAX_TEXT_BYTES:,} bytes of text alone."]
            break
        index.look_through(document)
    found = {item.name: item for item in index.report().overlaps}
    whole = [found[item.name] for item in probes if _is_whole(found.get(item.name))]
    copied = [found[item.name] for item in general if _is_copy(found.get(item.name))]
    copies = [found[item.name] for item in validation if _is_copy(found.get(item.name))]
    blocking = [_sentence(item) for item in [*whole, *copied]]
    is_cpt = recipe.training_type == "cpt"
    too_many = is_cpt and len(copies) > MAX_COPIES * len(validation)
    if copies:
        text = f"{len(copies)} of {len(validation)} validation documents are in the training text"
        (blocking if too_many else cut).append(f"{text}. {_sentence(copies[0])}")
    if blocking and not recipe.allow_overlap:
        raise DataError(
            "What the run is to be judged by is in the training text: "
            + " ".join(blocking[:_SHOWN])
            + (f" And {len(blocking) - _SHOWN} more." if len(blocking) > _SHOWN else ""),
            suggestion="Take the text out of the dataset, or reword what is measured; "
            "allow_overlap trains anyway.",
            details={"overlaps": blocking[:100]},
        )
    return [*blocking, *cut]


def _probe_texts(suite: Suite) -> Iterator[HeldOut]:
    for file in suite.probe_files:
        for number, probe in enumerate(file.probes, 1):
            text = _as_asked(probe)
            if len(text.split()) >= MIN_PROBE_WORDS:
                yield HeldOut(f"probe {number} of {file.name}", text)


def _as_asked(probe: Probe) -> str:
    return f"{probe.stem} {probe.answer}" if probe.stem else probe.question


def _general_texts(suite: Suite) -> Iterator[HeldOut]:
    for text in suite.general:
        for number, document in enumerate(text.documents, 1):
            yield HeldOut(f"document {number} of {text.name}", document)


def _training_documents(data: PreparedData, tokenizer: Tokenizer) -> Iterator[Document]:
    def named(text: TokenText, name: str) -> Iterator[Document]:
        for number, document in enumerate(text.documents(tokenizer), 1):
            yield Document(f"{name} {number}", document)

    replay = data.texts.replay
    return chain(
        named(data.texts.train, "training document"),
        named(replay, "replay document") if replay is not None else (),
    )


def _is_whole(overlap: Overlap | None) -> bool:
    return overlap is not None and overlap.share == 1


def _is_copy(overlap: Overlap | None) -> bool:
    return overlap is not None and overlap.share >= COPY_SHARE


def _sentence(overlap: Overlap) -> str:
    name = overlap.name[0].upper() + overlap.name[1:]
    return f"{name}: {overlap.source} has \u201c{overlap.example}\u201d."
