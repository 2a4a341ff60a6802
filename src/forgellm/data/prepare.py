"""From a recipe to the batches of a run: documents for cpt, conversations for ift, pairs for dpo and orpo."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from forgellm.data.chat.format import chat_format, template_of
from forgellm.data.chat.packing import conversations_once, packed_conversations
from forgellm.data.chat.shapes import LABEL_NOTE
from forgellm.data.chat.store import chat_store
from forgellm.data.chat.template import TemplateRefused
from forgellm.data.chat.turn_ends import turn_ends
from forgellm.data.cleaning.manifest import preparation_summary
from forgellm.data.datasets import find_dataset, find_replay
from forgellm.data.document_store import token_store
from forgellm.data.left_out import as_lines, in_words, nothing_to_train, worst_first
from forgellm.data.mixture import Mixture, plan_mixture, wanted_replay_rows
from forgellm.data.packing import PackedStream, validation_rows
from forgellm.data.prepared import PreparedData, RowStream, Texts, TokenText
from forgellm.data.progress import OnProgress
from forgellm.data.readers import READERS
from forgellm.data.reading.row_readers import ROW_READERS
from forgellm.data.split import Split, all_documents, split_documents
from forgellm.data.token_store import TokenStore, open_store
from forgellm.data.tokenizer import Tokenizer
from forgellm.errors import ConfigError, DataError
from forgellm.paths import Workspace
from forgellm.schema.recipe import Recipe

_SKIPPED_SHOWN = 100
_COUNTS = (
    "documents", "train_documents", "train_tokens", "validation_documents", "validation_tokens",
    "rows", "replay_rows", "replay_tokens",
)  # fmt: skip
_NOTES_TOLD = 10


def prepare_data(
    recipe: Recipe,
    workspace: Workspace,
    tokenizer: Tokenizer,
    seq_len: int,
    on_progress: OnProgress = lambda _: None,
) -> PreparedData:
    """Tokenise (or take from the cache), split, pack and mix.

    Raises DatasetNotFound, DataError, ConfigError, DiskFull.
    """
    dataset = find_dataset(workspace, recipe.dataset)
    cache = workspace.cache / "tokens"
    domain = _domain_store(recipe, dataset, tokenizer, seq_len, cache, on_progress)
    replay = None
    is_wanted = wanted_replay_rows(_num_rows(recipe), recipe.data_mixture_ratio)
    if is_wanted or recipe.replay == "auto":
        source = find_replay(workspace, recipe.replay_dataset)
        if source == dataset:
            raise ConfigError.one("replay_dataset", "must be another folder than dataset")
        replay = token_store(
            source, tokenizer, cache, on_progress, skip_unreadable=recipe.skip_unreadable
        )
    preparation = preparation_summary(dataset, domain.fingerprint)
    return _assemble(recipe, tokenizer, seq_len, domain, replay, preparation)


def reopen_prepared(
    summary: dict[str, Any],
    recipe: Recipe,
    workspace: Workspace,
    tokenizer: Tokenizer,
    seq_len: int,
    on_progress: OnProgress = lambda _: None,
) -> PreparedData:
    """The same batches as those of the run that recorded `summary`.

    They come from the cache, even if the dataset has changed or is gone. Without the cache they
    are made again. Raises DataError if they would not be the same, and what `prepare_data` raises.
    """
    if tokenizer.fingerprint != summary["tokenizer_fingerprint"]:
        raise DataError(
            "The model's tokenizer changed since the run started",
            suggestion="Restore the base model's files, or start a new run.",
        )
    cache = workspace.cache / "tokens"
    keys = summary["cache_key"], summary["replay_cache_key"]
    domain = open_store(cache, keys[0])
    replay = open_store(cache, keys[1]) if keys[1] else None
    if domain is None:
        dataset = find_dataset(workspace, recipe.dataset)
        domain = _domain_store(recipe, dataset, tokenizer, seq_len, cache, on_progress)
        _expect(domain, summary, "", "dataset")
    if replay is None and keys[1]:
        replay = token_store(
            find_replay(workspace, recipe.replay_dataset),
            tokenizer,
            cache,
            on_progress,
            skip_unreadable=recipe.skip_unreadable,
        )
        _expect(replay, summary, "replay_", "replay text")
    preparation = summary.get("preparation")
    prepared = _assemble(recipe, tokenizer, seq_len, domain, replay, preparation)
    if (domain.key, replay and replay.key) != keys:
        _expect_counts(prepared.summary, summary)
    return prepared


def _domain_store(
    recipe: Recipe,
    dataset: Path,
    tokenizer: Tokenizer,
    seq_len: int,
    cache: Path,
    on_progress: OnProgress,
) -> TokenStore:
    if recipe.training_type == "cpt":
        return token_store(
            dataset, tokenizer, cache, on_progress, skip_unreadable=recipe.skip_unreadable
        )
    try:
        form = chat_format(recipe, tokenizer, seq_len)
        return chat_store(
            dataset, tokenizer, form, cache, on_progress, skip_unreadable=recipe.skip_unreadable
        )
    except TemplateRefused as error:
        raise ConfigError.one("chat_template", f"the model's own cannot be used: {error}") from None


def _expect(store: TokenStore, summary: dict[str, Any], part: str, name: str) -> None:
    """Raises DataError unless a store that was made anew is that of the run's beginning.

    Another version may read the same files to the same tokens under another key. Runs of versions
    that did not note what their tokens were are believed by the files' contents; that all counts are
    the same is looked at besides.
    """
    noted = summary.get(f"{part}content_sha256")
    same = (
        store.content_sha256 == noted
        if noted
        else store.fingerprint == summary[f"{part}fingerprint"]
    )
    if store.key != summary[f"{part}cache_key"] and not same:
        raise _changed(name)


def _expect_counts(found: dict[str, Any], noted: dict[str, Any]) -> None:
    """Raises DataError, which names them, where counts of data made anew are not as they were."""
    names = [name for name in _COUNTS if name in noted and noted[name] != found[name]]
    if names:
        raise DataError(
            "The same files are read otherwise than when the run started ("
            + ", ".join(f"{name} was {noted[name]:,}, is {found[name]:,}" for name in names)
            + "), and their tokenised copy is gone",
            suggestion="Continue with the version that started the run, or start a new run.",
        )


def _changed(name: str) -> DataError:
    return DataError(
        f"The {name} changed since the run started, or is read otherwise by this version, and its"
        " tokenised copy is gone",
        suggestion=f"Restore the {name} as it was, or start a new run.",
    )


def _num_rows(recipe: Recipe) -> int:
    return recipe.max_iterations * recipe.grad_accum_steps * recipe.batch_size


def _assemble(
    recipe: Recipe,
    tokenizer: Tokenizer,
    seq_len: int,
    domain: TokenStore,
    replay: TokenStore | None,
    preparation: dict[str, Any] | None,
) -> PreparedData:
    if not domain.report.documents:
        types = READERS if recipe.training_type == "cpt" else ROW_READERS
        raise nothing_to_train(recipe, domain.report.skipped, types)
    split = split_documents(domain, recipe.validation_split, recipe.seed)
    warnings = [*_check_size(split, seq_len), *split.warnings, *_skip_warnings(domain)]
    warnings += _note_warnings(domain)
    if recipe.training_type != "cpt":
        warnings += turn_ends(tokenizer, template_of(recipe, tokenizer)).warnings
    packed: RowStream
    if domain.trained is None:
        packed = PackedStream(domain.tokens, split.train, seq_len, recipe.seed)
        validation = partial(validation_rows, domain.tokens, split.validation, seq_len)
    else:
        packed = packed_conversations(domain, split.train, seq_len, recipe.seed)
        validation = partial(conversations_once, domain, split.validation, seq_len)
    train = TokenText(domain.tokens, split.train)
    texts = Texts(train, TokenText(domain.tokens, split.validation), None)
    mixture, packed_replay = Mixture(_num_rows(recipe), 0), None
    if replay is not None:
        _require_replay(replay, recipe.replay_dataset or "the shipped text")
        spans = all_documents(replay, excluded=split.held_out)
        mixture, warning = plan_mixture(
            mixture.num_rows, recipe.data_mixture_ratio, spans.num_tokens, seq_len
        )
        warnings += [warning] if warning else []
        if mixture.num_replay_rows or recipe.replay == "auto":
            packed_replay = PackedStream(replay.tokens, spans, seq_len, recipe.seed)
            texts = texts._replace(replay=TokenText(replay.tokens, spans))
    summary = _summary(domain, split, packed, seq_len, mixture, recipe) | {
        "preparation": preparation,
        "chat_template": _named_template(recipe, tokenizer),
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "replay_source": None if replay is None else recipe.replay_dataset or "shipped",
        "replay_fingerprint": replay and replay.fingerprint,
        "replay_cache_key": replay and replay.key,
        "replay_content_sha256": replay and replay.content_sha256,
        "replay_tokens": packed_replay.epoch_tokens if packed_replay else 0,
    }
    return PreparedData(
        summary, warnings, texts, recipe, mixture, packed, packed_replay, validation
    )


def _summary(
    domain: TokenStore,
    split: Split,
    packed: RowStream,
    seq_len: int,
    mixture: Mixture,
    recipe: Recipe,
) -> dict[str, Any]:
    domain_rows = mixture.num_rows - mixture.num_replay_rows
    report = domain.report
    return {
        "fingerprint": domain.fingerprint,
        "cache_key": domain.key,
        "content_sha256": domain.content_sha256,
        "seq_len": seq_len,
        "files": report.files,
        "documents": report.documents,
        "text_bytes": report.text_bytes,
        "train_documents": len(split.train),
        "train_tokens": split.train.num_tokens,
        "validation_documents": len(split.validation),
        "validation_tokens": split.validation.num_tokens,
        "epochs": round(domain_rows / packed.rows_per_epoch, 3),
        "requested_mixture_ratio": recipe.data_mixture_ratio,
        "achieved_mixture_ratio": round(mixture.achieved_ratio, 6),
        "rows": mixture.num_rows,
        "replay_rows": mixture.num_replay_rows,
        "cut": report.cut,
        "num_skipped": len(report.skipped),
        "skipped": [asdict(item) for item in worst_first(report.skipped)[:_SKIPPED_SHOWN]],
        "notes": [asdict(item) for item in worst_first(report.notes)[:_SKIPPED_SHOWN]],
    }


def _named_template(recipe: Recipe, tokenizer: Tokenizer) -> str | None:
    """The chat template to keep with the run, where it is not the model's own."""
    if recipe.training_type == "cpt":
        return None
    template = template_of(recipe, tokenizer)
    return None if template == tokenizer.chat_template else template


def _require_replay(store: TokenStore, name: str) -> None:
    if store.report.documents:
        return
    told = in_words(store.report.skipped)
    raise DataError(
        f"No text was found in the replay_dataset {name!r}"
        + (f". Left out: {told}" if told else ""),
        suggestion="Put documents of these types into it: " + " ".join(sorted(READERS)),
        details={"replay_dataset": name, "skipped": as_lines(store.report.skipped)},
    )


def _check_size(split: Split, seq_len: int) -> list[str]:
    tokens = split.train.num_tokens
    if split.train.num_targets < 2:
        raise DataError(
            f"The dataset has {tokens} tokens to train on, which is too few",
            suggestion="Add documents, or lower validation_split.",
            details={"train_tokens": tokens},
        )
    if tokens >= seq_len:
        return []
    return [
        f"The dataset has {tokens} tokens to train on, fewer than one sequence of {seq_len}: each "
        "sequence repeats it. Add documents, or lower max_seq_length."
    ]


def _skip_warnings(store: TokenStore) -> list[str]:
    report, warnings = store.report, []
    if report.skipped:
        warnings.append(f"Not all of the dataset is used. Left out: {in_words(report.skipped)}.")
    if report.cut:
        what = (
            "pairs lost their first turns"
            if store.rejected is not None
            else ("conversations lost their last turns")
        )
        warnings.append(
            f"{report.cut:,} of {report.documents:,} {what}: they are longer than max_seq_length."
        )
    return warnings


def _note_warnings(store: TokenStore) -> list[str]:
    """One sentence on what of the rows is not used, columns that only label them last."""
    rows: Counter[str] = Counter()
    for note in store.report.notes:
        rows[note.reason] += note.rows or 0
    if not rows:
        return []
    ordered = sorted(rows, key=lambda reason: reason.endswith(LABEL_NOTE))
    told = "; ".join(f"{reason}: {rows[reason]:,} rows" for reason in ordered[:_NOTES_TOLD])
    more = f"; and {len(ordered) - _NOTES_TOLD} more" if len(ordered) > _NOTES_TOLD else ""
    return [f"Not all that the rows hold is learned from ({told}{more})."]
