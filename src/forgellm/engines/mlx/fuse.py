"""A checkpoint merged into its base: plain weights, tensor by tensor, and a comparison of the two."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from forgellm.catalog.safetensors_header import read_header
from forgellm.catalog.safety import weight_files
from forgellm.engines import merging
from forgellm.engines.adapter import settings_beside
from forgellm.engines.base import Agreement, WeightChange
from forgellm.engines.mlx import load
from forgellm.engines.mlx.adapters import attach_adapter, merged_weight, read_adapter
from forgellm.engines.mlx.tensor_files import Tensors, save_tensors
from forgellm.errors import UnsupportedModel

_QUANTISED_PARTS = ("scales", "biases")


class MlxFuseEngine:
    """See `engines.base.FuseEngine`. A quantised base becomes plain bfloat16, since rounding the
    sum again could erase a small adapter."""

    def fuse(
        self,
        model_path: Path,
        weights: Path,
        out: Path,
        on_progress: Callable[[float], None],
        dtype: str | None = None,
    ) -> None:
        is_full = weights.is_dir()
        if is_full:
            _require_names_of_files(weights, model_path)
        source = weights if is_full else model_path
        base = _BaseWeights(source)
        if is_full and dtype is None:
            dtype = merging.main_dtype(model_path)
        merge = _AdapterMerge(weights, model_path) if not is_full else None

        def change(name: str, tensor: mx.array) -> mx.array:
            stored = tensor.dtype
            if merge is not None:
                tensor = merge(name, tensor)
            is_float = mx.issubdtype(stored, mx.floating)
            return tensor.astype(load.DTYPES[dtype] if dtype and is_float else stored)

        def rewrite(file: Path, target: Path, progress: merging.Progress) -> None:
            save_tensors(target, {n: change(n, t) for n, t in base.take(file, progress)})

        merging.rewrite_weights(source, out, rewrite, on_progress)
        merging.write_config(model_path, out, dtype or base.plain_dtype)

    def rewrite(
        self,
        model_path: Path,
        change: WeightChange,
        out: Path,
        on_progress: Callable[[float], None],
    ) -> None:
        base = _BaseWeights(model_path)

        def changed(name: str, tensor: mx.array) -> mx.array:
            if name not in change.names:
                return tensor
            return mx.array(change(name, np.array(tensor.astype(mx.float32)))).astype(tensor.dtype)

        def rewrite(file: Path, target: Path, progress: merging.Progress) -> None:
            save_tensors(target, {n: changed(n, t) for n, t in base.take(file, progress)})

        merging.rewrite_weights(model_path, out, rewrite, on_progress)
        merging.write_config(model_path, out, base.plain_dtype)

    def agreement(
        self, model_path: Path, weights: Path, fused: Path, prompts: list[list[int]]
    ) -> Agreement:
        place = load.choose_placement(merging.comparison_dtype(model_path))
        is_full = weights.is_dir()
        model, _ = load.load_model(weights if is_full else model_path, place.dtype)
        if not is_full:
            attach_adapter(model, weights)
        expected = list(_log_probs(model, prompts))
        del model
        found = _log_probs(load.load_model(fused, place.dtype)[0], prompts)
        return merging.agreement_of(expected, found, place.dtype_name)


def _require_names_of_files(weights: Path, model_path: Path) -> None:
    """Raises UnsupportedModel where a full checkpoint is laid out as mlx-lm computes, and not as the
    base's files are, which other programs read."""
    names = [name for file in weight_files(weights) for name in read_header(file)]
    if absent := merging.not_stored(names, model_path):
        raise UnsupportedModel(
            f"The checkpoint cannot be published: the base's files have no {absent[0]}, as mlx-lm "
            "lays its weights out anew.",
            suggestion="Answer from the checkpoint with the MLX engine, or train with torch.",
        )


class _BaseWeights:
    """A model's tensors, read from the disk when they are taken, and made plain."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        self._quantization: dict[str, Any] = config.get("quantization") or {}
        self._left: Tensors = {}
        for file in weight_files(folder):
            self._left |= mx.load(str(file))  # nothing is read yet

    @property
    def plain_dtype(self) -> str | None:
        """What quantised weights become; None for a base that is plain already."""
        return "bfloat16" if self._quantization else None

    def take(self, file: Path, on_progress: merging.Progress) -> Iterator[tuple[str, mx.array]]:
        """The tensors of one file; a quantised weight brings its scales along from wherever."""
        names = list(read_header(file))
        for number, name in enumerate(names, 1):
            stem, _, leaf = name.rpartition(".")
            belongs = leaf in _QUANTISED_PARTS and f"{stem}.weight" in names
            tensor = None if belongs else self._left.pop(name, None)
            if tensor is not None:
                yield name, self._plain(stem, tensor)
            on_progress(number / len(names))

    def _plain(self, stem: str, weight: mx.array) -> mx.array:
        scales = self._left.pop(f"{stem}.scales", None)
        biases = self._left.pop(f"{stem}.biases", None)
        if scales is None:
            return weight
        own = self._quantization.get(stem)
        settings = own if isinstance(own, dict) else self._quantization
        plain = mx.dequantize(
            weight,
            scales,
            biases,
            group_size=settings["group_size"],
            bits=settings["bits"],
            mode=settings.get("mode", "affine"),
        )
        return plain.astype(mx.bfloat16)


class _AdapterMerge:
    """Changes the tensors that an adapter file adapts and leaves the others as they are."""

    def __init__(self, file: Path, model_path: Path) -> None:
        self._scale = settings_beside(file).scale
        self._parts = merging.adapter_parts(file, read_adapter(file), model_path)
        self._inputs_first = merging.stores_inputs_first(model_path)

    def __call__(self, name: str, tensor: mx.array) -> mx.array:
        parts = self._parts.get(name)
        if parts is None:
            return tensor
        weight = tensor.T if self._inputs_first else tensor
        merging.require_shape(name, tuple(weight.shape), parts)
        merged = merged_weight(weight, parts, self._scale)
        return merged.T if self._inputs_first else merged


def _log_probs(model: Any, prompts: list[list[int]]) -> Iterator[NDArray[np.float32]]:
    """For each prompt [T, V] log-probabilities of the next token."""
    for prompt in prompts:
        logits = model(mx.array([prompt]))[0].astype(mx.float32)
        yield np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
