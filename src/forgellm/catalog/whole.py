"""Whether a configuration and a tokenizer fit the weights beside them, from headers alone.

A library believes `config.json`: it makes as many layers as that says, takes the memory for them,
and fills what the weights do not give with random numbers. So the numbers are compared before.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forgellm.catalog.safetensors_header import TensorInfo
from forgellm.errors import UnsupportedModel
from forgellm.file_memory import FileMemory

MAX_TOKENIZER_BYTES = 200_000_000

# Sizes by any of the names that they go by.
_POSITIVE = (
    "vocab_size", "hidden_size", "n_embd", "d_model",
    "num_hidden_layers", "n_layer", "n_layers", "num_layers",
    "num_attention_heads", "n_head", "n_heads", "num_key_value_heads", "head_dim",
    "max_position_embeddings", "n_positions",
)  # fmt: skip
_NOT_NEGATIVE = (
    "intermediate_size", "n_inner", "num_experts", "num_local_experts", "n_routed_experts",
    "moe_intermediate_size", "sliding_window", "num_nextn_predict_layers",
)  # fmt: skip
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_CONTEXT = frozenset({"max_position_embeddings", "n_positions", "sliding_window"})
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
# The longest contexts of published models are about ten million tokens.
_MAX_CONTEXT = 1 << 31
# A size that no weight shows, such as that of unused dense layers beside experts, may be any up to this.
_UNSEEN_SIZE = 1 << 20
_MANY_EXPERTS = 4096
_EMBEDDINGS = (
    "embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight",
    "tok_embeddings.weight", "embeddings.weight",
)  # fmt: skip
_IN_A_LAYER = re.compile(r"(?:(.*?)\.)?(?:layers|h|blocks)\.(\d{1,9})\.")
_OTHER_PARTS = re.compile(r"visi|visual|image|audio|speech|video|encoder|projector|mtp|nextn")
_PLACEHOLDER = re.compile(r"image|audio|video|vision", re.IGNORECASE)

Tensors = dict[str, TensorInfo]


def require_fit(folder: Path, config: dict[str, Any], tensors: Tensors) -> None:
    """Raises UnsupportedModel where the configuration says sizes that no model has or that the
    weights, by their names and shapes, do not have, or where the tokenizer has more tokens than the
    embedding has rows. A layout that is not known is compared as far as its numbers can be found.
    """
    _require_numbers(config)
    text = config.get("text_config")
    text = text if isinstance(text, dict) else config
    for part in (config, text):
        _require_sizes(part, _num_weights(tensors))
    _require_layers(text, tensors)
    _require_sides(text, tensors)
    rows = embedding_rows(tensors)
    _require_vocabulary(folder, text, rows)


def embedding_rows(tensors: Tensors) -> int | None:
    """How many tokens the text embedding has a row for; None where it bears no known name."""
    found = [
        info.shape[0]
        for name, info in tensors.items()
        if name.endswith(_EMBEDDINGS) and len(info.shape) == 2 and not _OTHER_PARTS.search(name)
    ]
    return max(found, default=None)


def _require_numbers(config: dict[str, Any]) -> None:
    """No number anywhere is NaN; infinity stands in published limits, but as no number of its own."""
    pending: list[tuple[str, Any]] = list(config.items())
    while pending:
        name, value = pending.pop()
        if isinstance(value, dict):
            pending.extend(value.items())
        elif isinstance(value, list):
            pending.extend((name, item) for item in value if not _is_infinite(item))
        elif isinstance(value, float) and not math.isfinite(value):
            raise _refused(f"it says that {name} is {value}", name, value)


def _is_infinite(value: Any) -> bool:
    return isinstance(value, float) and math.isinf(value)


def _require_sizes(config: dict[str, Any], num_weights: int) -> None:
    most = max(num_weights, _UNSEEN_SIZE)
    for name in (*_POSITIVE, *_NOT_NEGATIVE):
        least = 1 if name in _POSITIVE else 0
        values = config.get(name)
        for value in values if isinstance(values, list) else [values]:
            if value is None:
                continue
            if type(value) is not int or value < least:
                raise _refused(f"it says that {name} is {_shown(value)}", name, value)
            if value > (_MAX_CONTEXT if name in _CONTEXT else most):
                found = f", and the weights are {num_weights} numbers" * (name not in _CONTEXT)
                raise _refused(f"it says that {name} is {value}{found}", name, value)


def _require_layers(config: dict[str, Any], tensors: Tensors) -> None:
    name, said = next(_numbers(config, _LAYERS), (None, None))
    if name is None or said is None:
        return
    stacks: dict[str, set[int]] = {}
    for tensor in tensors:
        match = _IN_A_LAYER.match(tensor)
        if match and not _OTHER_PARTS.search(match[1] or ""):
            stacks.setdefault(match[1] or "", set()).add(int(match[2]))
    # Without layers by number there are at most as many as tensors.
    found = max((max(stack) + 1 for stack in stacks.values()), default=len(tensors))
    extra = next((n for _, n in _numbers(config, ("num_nextn_predict_layers",))), 0)
    if said > found or (stacks and said < found - extra):
        raise _refused(f"it says that {name} is {said}, the weights have {found}", name, said)


def _require_sides(config: dict[str, Any], tensors: Tensors) -> None:
    """The width of a model, and a large number of experts, are sides of some of its weights."""
    sides = Counter(side for info in tensors.values() for side in info.shape)
    many = [(n, v) for n, v in _numbers(config, _EXPERTS) if v > _MANY_EXPERTS]
    for name, said in (*_numbers(config, _HIDDEN), *many):
        if said not in sides:
            raise _refused(
                f"it says that {name} is {said}, and no weight has that side", name, said
            )


def _require_vocabulary(folder: Path, config: dict[str, Any], rows: int | None) -> None:
    said = next((value for _, value in _numbers(config, ("vocab_size",))), None)
    if rows is None:
        rows = said
    elif said is not None and said > rows:
        found = f"it says that vocab_size is {said}, the embedding has {rows} rows"
        raise _refused(found, "vocab_size", said)
    num_tokens = _highest_ids.get(str(folder / "tokenizer.json"))
    if rows is not None and num_tokens is not None and num_tokens > rows:
        raise UnsupportedModel(
            f"The tokenizer has {num_tokens} tokens, the embedding {rows} rows",
            suggestion="Tokens were added without the embedding being made larger: use the tokenizer "
            "that the model was trained with, or resize the model (resize_token_embeddings).",
            details={"tokenizer_tokens": num_tokens, "embedding_rows": rows},
        )


def _numbers(config: dict[str, Any], names: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    for name in names:
        if type(value := config.get(name)) is int:
            yield name, value


def _num_weights(tensors: Tensors) -> int:
    """At most: packed words hold up to 32 numbers."""
    return sum(
        i.num_elements * (32 if i.dtype in ("U32", "U8", "I32") else 1) for i in tensors.values()
    )


def _num_tokens(path: str) -> int | None:
    """One more than the highest id; None for a file that the tokenizer's own reader will refuse.

    Placeholders of pictures and sounds do not count: a text model that was made of one that sees
    has them without a row, and no text becomes one.
    """
    try:
        if Path(path).stat().st_size > MAX_TOKENIZER_BYTES:
            raise UnsupportedModel(
                f"tokenizer.json is larger than {MAX_TOKENIZER_BYTES // 1_000_000} MB"
            )
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        vocabulary = content["model"].get("vocab", {})
        ids = range(len(vocabulary)) if isinstance(vocabulary, list) else vocabulary.values()
        added = content.get("added_tokens") or []
        unseen = {
            token["id"]
            for token in added
            if token.get("special") and _PLACEHOLDER.search(token["content"])
        }
        named = {i for i in (*ids, *(token["id"] for token in added)) if type(i) is int}
        return 1 + max(named - unseen, default=-1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


_highest_ids: FileMemory[int | None] = FileMemory(_num_tokens)


def _shown(value: Any) -> str:
    return json.dumps(value)[:40]


def _refused(found: str, name: str, value: Any) -> UnsupportedModel:
    return UnsupportedModel(
        f"config.json does not fit the weights: {found}",
        suggestion="Use the config.json that was published with these weights.",
        details={"file": "config.json", "field": name, "value": _shown(value)},
    )
