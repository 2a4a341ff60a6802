"""A model's own tokenizer, read from `tokenizer.json` without any model library."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from forgellm.data.bulk_encoder import BulkEncoder
from forgellm.data.span_encoder import Span, SpanEncoder, Tokens
from forgellm.errors import UnsupportedModel

# The first of these that the model knows as a control token ends a document.
_DOCUMENT_ENDS = ("<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>")


CHAT_TEMPLATE_NAME = "chat_template.jinja"


class Tokenizer:
    """Text to ids and back, keeping plain text and control tokens apart.

    Attributes:
        bos_id: put in front of every sequence; None when the model's tokenizer does not add one.
        document_end_id: follows each document in training.
        eos_ids: ids that end a text, by the model's files; eos_tokens: their strings.
        special_tokens: strings of all control tokens.
        added_tokens: those, and others that are cut out of any text as one token.
        fingerprint: hex digest of what decides the ids of a document.
    """

    def __init__(self, serialized: str, settings: _Settings) -> None:
        self._serialized, self._settings = serialized, settings
        self._named_controls = settings.control_tokens
        self._plain = self._build(plain=True)
        added = self._plain.get_added_tokens_decoder().values()
        self.added_tokens = frozenset(token.content for token in added)
        self.special_tokens = frozenset(token.content for token in added if token.special)
        self.vocab_size = int(self._plain.get_vocab_size(with_added_tokens=True))
        self.chat_template = settings.chat_template
        self.bos_token = settings.bos_token
        self.eos_token = settings.eos_token
        self.bos_id = self._find_bos(settings.add_bos_token)
        eos_ids = settings.eos_ids | self._ids_of([self.eos_token or ""])
        self.document_end_id = self._find_document_end(eos_ids)
        self.eos_ids = eos_ids | {self.document_end_id}
        self.eos_tokens = frozenset(
            token for token in self.special_tokens if self._ids_of([token]) <= self.eos_ids
        )
        decides = f"{self.bos_id} {self.document_end_id} {sorted(self.special_tokens)}"
        self.fingerprint = hashlib.sha256((decides + serialized).encode()).hexdigest()

    @classmethod
    def load(cls, folder: Path, adapter_folder: Path | None = None) -> Tokenizer:
        """The tokenizer of a model; an adapter's folder may bring a chat template of its own.

        Raises UnsupportedModel if `folder` has no usable tokenizer.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UnsupportedModel(
                "The model has no tokenizer.json",
                suggestion="Use a model folder that holds tokenizer.json, or import its GGUF file: "
                "forgellm models import FILE.gguf",
                details={"searched": ["tokenizer.json"]},
            )
        settings = _Settings.read(folder)
        if adapter_folder is not None and (adapter_folder / CHAT_TEMPLATE_NAME).is_file():
            settings.chat_template = _chat_template(adapter_folder, {})
        try:
            return cls(path.read_text(encoding="utf-8"), settings)
        except UnsupportedModel:
            raise
        except Exception as error:  # the library raises bare Exception for a malformed file
            raise _broken("tokenizer.json", error) from None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Tokenizer:
        """The tokenizer that `to_dict` was called on, in another process."""
        settings = values["settings"]
        eos_ids = frozenset(settings["eos_ids"])
        return cls(values["serialized"], _Settings(**{**settings, "eos_ids": eos_ids}))

    def to_dict(self) -> dict[str, Any]:
        settings = asdict(self._settings) | {"eos_ids": sorted(self._settings.eos_ids)}
        return {"serialized": self._serialized, "settings": settings}

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: nothing added, and "<|im_end|>" in it is only characters."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: list[str], *, with_controls: bool = False) -> list[bytes]:
        """As `encode`, or `with_controls` as `encode_template`, for many texts, on all cores: of
        each the ids, TOKEN_BYTES each."""
        return self._bulk.encode(texts, with_controls=with_controls)

    def encode_spans(
        self, texts: list[str], spans: Sequence[Sequence[Span]], *, with_controls: bool = False
    ) -> list[Tokens]:
        """As `encode_batch`, with which tokens begin in the spans of each text."""
        return self._spans.encode(texts, spans, with_controls=with_controls)

    def encode_parts(self, parts: Sequence[tuple[str, bool]], trained: Sequence[int]) -> Tokens:
        """The parts as one text, in which only those marked true may have control tokens; `trained`
        are the numbers of the parts whose tokens are marked."""
        return self._spans.encode_escaped(parts, trained)

    def encode_template(self, text: str) -> list[int]:
        """Ids of a rendered chat template: control-token strings become control tokens."""
        ids: list[int] = self._template.encode(text, add_special_tokens=False).ids
        return ids

    def spells_control_tokens(self, text: str) -> bool:
        """Whether `encode_template` would find control tokens in the text."""
        if self._spelled is not None and not self._spelled.search(text):
            return False  # without encoding it twice
        return self.encode_template(text) != self.encode(text)

    def is_only_text(self, text: str, before: str, after: str) -> bool:
        """Whether `text` has no part in a control token where it stands between the two."""
        if self._spelled is None:
            return not self.spells_control_tokens(text)
        if self._spelled.search(text):
            return False
        return not self.join_in_control_token(before, text, after) and (
            not self.join_in_control_token(text, after)
        )

    def join_in_control_token(self, left: str, right: str, after: str = "") -> bool:
        """Whether a control token reaches from one text into the other, and into what is after."""
        if left[-1:] not in self._not_last or right[:1] not in self._not_first or not left:
            return False
        left = left[-self._longest :]
        beyond = (right[: self._longest] + after)[: self._longest]
        return self._spelled is not None and any(
            found.start() < len(left) < found.end()
            for found in self._spelled.finditer(left + beyond)
        )

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return str(self._plain.decode(list(ids), skip_special_tokens=skip_special))

    @cached_property
    def _template(self) -> tokenizers.Tokenizer:
        return self._build(plain=False)

    @cached_property
    def _bulk(self) -> BulkEncoder:
        return BulkEncoder(self._plain, lambda: self._template)

    @cached_property
    def _spans(self) -> SpanEncoder:
        return SpanEncoder(
            self._bulk, self._plain, lambda: self._template, lambda: self._build(plain=True)
        )

    @cached_property
    def _not_first(self) -> frozenset[str]:
        """Characters of control tokens that are not their first."""
        return frozenset("".join(token[1:] for token in self.special_tokens))

    @cached_property
    def _not_last(self) -> frozenset[str]:
        return frozenset("".join(token[:-1] for token in self.special_tokens))

    @cached_property
    def _longest(self) -> int:
        """Characters of the longest control token."""
        return max(map(len, self.special_tokens), default=1)

    @cached_property
    def _spelled(self) -> re.Pattern[str] | None:
        """Finds what may become a control token; None where that depends on a normalizer."""
        tokens = self._plain.get_added_tokens_decoder().values()
        special = [token for token in tokens if token.special]
        if any(token.normalized for token in special):
            return None
        return re.compile("|".join(re.escape(token.content) for token in special) or "(?!)")

    def _build(self, *, plain: bool) -> tokenizers.Tokenizer:
        # Two instances rather than one switched back and forth, which threads would trip over.
        tokenizer = tokenizers.Tokenizer.from_str(self._serialized)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        known = [token for token in self._named_controls if token in vocabulary]
        already = {
            token.content
            for token in tokenizer.get_added_tokens_decoder().values()
            if token.special
        }
        tokenizer.add_special_tokens([token for token in known if token not in already])
        tokenizer.encode_special_tokens = plain
        return tokenizer

    def token_id(self, token: str) -> int | None:
        """The id of a token by its string."""
        found: int | None = self._plain.token_to_id(token)
        return found

    def _ids_of(self, tokens: Sequence[str]) -> frozenset[int]:
        found = [self.token_id(token) for token in tokens if token in self.special_tokens]
        return frozenset(number for number in found if number is not None)

    def _find_bos(self, add_bos_token: bool) -> int | None:
        bare = self._plain.encode("a", add_special_tokens=False).ids
        full = self._plain.encode("a", add_special_tokens=True).ids
        named = self._ids_of([self.bos_token or ""])
        if len(full) > len(bare) and full[0] != bare[0]:
            return int(full[0])
        return min(named) if named and add_bos_token else None

    def _find_document_end(self, eos_ids: frozenset[int]) -> int:
        for token in _DOCUMENT_ENDS:
            if found := self._ids_of([token]):
                return min(found)
        if eos := self._ids_of([self.eos_token or ""]) or eos_ids:
            return min(eos)
        raise UnsupportedModel(
            "The model's tokenizer names no end-of-text token",
            suggestion='Add "eos_token" to the model\'s tokenizer_config.json.',
        )


@dataclass
class _Settings:
    """What the JSON files beside `tokenizer.json` say."""

    bos_token: str | None
    eos_token: str | None
    control_tokens: list[str]
    add_bos_token: bool
    chat_template: str | None
    eos_ids: frozenset[int]

    @classmethod
    def read(cls, folder: Path) -> _Settings:
        config = _read_json(folder / "tokenizer_config.json")
        names = _read_json(folder / "special_tokens_map.json") | {
            key: value for key, value in config.items() if value is not None
        }
        bos_token = _content(names.get("bos_token"))
        eos_token = _content(names.get("eos_token"))
        extra = names.get("additional_special_tokens")
        named = [names.get("pad_token"), *(extra if isinstance(extra, list) else [])]
        candidates = [bos_token, eos_token, *(_content(token) for token in named)]
        eos_ids = _eos_ids(_read_json(folder / "generation_config.json"))
        if not eos_ids and not eos_token:
            eos_ids = _eos_ids(_read_json(folder / "config.json"))
        return cls(
            bos_token,
            eos_token,
            control_tokens=sorted({token for token in candidates if token}),
            add_bos_token=config.get("add_bos_token") is True,
            chat_template=_chat_template(folder, config),
            eos_ids=eos_ids,
        )


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    file = folder / CHAT_TEMPLATE_NAME
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise _broken(file.name, error) from None
    template = config.get("chat_template")
    if isinstance(template, list):  # several named templates
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}  # fmt: skip
        template = named.get("default")
    return template if isinstance(template, str) else None


def _eos_ids(config: dict[str, Any]) -> frozenset[int]:
    value = config.get("eos_token_id")
    values = value if isinstance(value, list) else [value]
    return frozenset(item for item in values if isinstance(item, int))


def _content(token: Any) -> str | None:
    """A token is written as a string or as an object with `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(path.name, error) from None
    if not isinstance(value, dict):
        raise _broken(path.name, "not a JSON object")
    return value


def _broken(name: str, reason: object) -> UnsupportedModel:
    return UnsupportedModel(
        f"The model's {name} cannot be read",
        suggestion="Download the model again.",
        details={"file": name, "reason": str(reason)[:300]},
    )
