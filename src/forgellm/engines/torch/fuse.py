"""A checkpoint merged into its base: plain weights, tensor by tensor, and a comparison of the two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from forgellm.catalog.safetensors_header import read_header
from forgellm.catalog.safety import weight_files
from forgellm.engines import merging
from forgellm.engines.adapter import LoraSettings, settings_beside
from forgellm.engines.base import Agreement, WeightChange
from forgellm.engines.torch import load
from forgellm.engines.torch.adapters import attach_adapter, read_adapter
from forgellm.engines.torch.lora import LoraLinear, merge_lora
from forgellm.engines.torch.quantised import AffineWeight
from forgellm.errors import CheckpointCorrupt, UnsupportedModel

_CPU = torch.device("cpu")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
Change = Callable[[str, Tensor], Tensor]


class TorchFuseEngine:
    """See `engines.base.FuseEngine`. At most one file of the base is in memory at a time, but for
    models that transformers names and lays out otherwise than their files: these are loaded whole.

    A quantised base becomes plain bfloat16, since rounding the sum again could erase a small
    adapter.
    """

    def fuse(
        self,
        model_path: Path,
        weights: Path,
        out: Path,
        on_progress: Callable[[float], None],
        dtype: str | None = None,
    ) -> None:
        change: Change
        if weights.is_dir():
            dtype = dtype or merging.main_dtype(model_path)
            change, source = _cast_to(dtype), weights
        elif merging.is_renamed(weights, read_adapter(weights), model_path):
            _fuse_whole(model_path, weights, out, dtype or merging.main_dtype(model_path))
            on_progress(1.0)
            return
        else:
            change, source = _AdapterMerge(weights, model_path, dtype), model_path
        base = _BaseWeights(source)

        def rewrite(file: Path, target: Path, progress: merging.Progress) -> None:
            _rewrite(base, file, target, change, progress)

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

        def changed(name: str, tensor: Tensor) -> Tensor:
            if name not in change.names:
                return tensor
            return torch.from_numpy(change(name, tensor.float().numpy())).to(tensor.dtype)

        def rewrite(file: Path, target: Path, progress: merging.Progress) -> None:
            _rewrite(base, file, target, changed, progress)

        merging.rewrite_weights(model_path, out, rewrite, on_progress)
        merging.write_config(model_path, out, base.plain_dtype)

    def agreement(
        self, model_path: Path, weights: Path, fused: Path, prompts: list[list[int]]
    ) -> Agreement:
        place = load.choose_placement(merging.comparison_dtype(model_path))
        is_full = weights.is_dir()
        model = load.load_model(weights if is_full else model_path, place.dtype, place.device)
        if not is_full:
            attach_adapter(model, weights)
        expected = list(_log_probs(model, prompts, place.device))
        del model
        found = _log_probs(load.load_model(fused, place.dtype, place.device), prompts, place.device)
        return merging.agreement_of(expected, found, place.dtype_name)


def _fuse_whole(model_path: Path, weights: Path, out: Path, dtype: str) -> None:
    model = load.load_model(model_path, cast(torch.dtype, getattr(torch, dtype)), _CPU)
    attach_adapter(model, weights)
    merge_lora(model)
    model.save_pretrained(out)
    for file in out.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors lets only the owner read
    merging.write_config(model_path, out, dtype)


class _BaseWeights:
    """Makes a model's tensors plain; a quantised weight's scales may be in another file."""

    def __init__(self, folder: Path) -> None:
        self._settings = load.affine_settings(folder)
        self._files = {name: file for file in weight_files(folder) for name in read_header(file)}

    @property
    def plain_dtype(self) -> str | None:
        """What quantised weights become; None for a base that is plain already."""
        return "bfloat16" if self._settings else None

    def plain(self, name: str, tensor: Tensor) -> Tensor | None:
        """None for scales and biases, which go into their weight."""
        stem, _, leaf = name.rpartition(".")
        if f"{stem}.scales" not in self._files or leaf not in ("weight", "scales", "biases"):
            return tensor
        if leaf != "weight":
            return None
        scales, biases = (self._read(f"{stem}.{part}") for part in ("scales", "biases"))
        own = self._settings.get(stem)
        settings = own if isinstance(own, dict) else self._settings
        num_columns = scales.shape[1] * int(settings["group_size"])
        return AffineWeight(tensor, scales, biases, num_columns).plain().bfloat16()

    def _read(self, name: str) -> Tensor:
        with _opened(self._files[name]) as tensors:
            return cast(Tensor, tensors.get_tensor(name))


class _AdapterMerge:
    """Changes the tensors that an adapter file adapts, and leaves the others but for their type."""

    def __init__(self, file: Path, model_path: Path, dtype: str | None) -> None:
        self._cast = None if dtype is None else _cast_to(dtype)
        self._settings = settings_beside(file)
        self._parts = merging.adapter_parts(file, read_adapter(file), model_path)
        self._inputs_first = merging.stores_inputs_first(model_path)

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        parts = self._parts.get(name)
        if parts is None:
            merged = tensor
        elif self._inputs_first:
            merged = _merged(name, tensor.mT, parts, self._settings).mT
        else:
            merged = _merged(name, tensor, parts, self._settings)
        return merged.to(tensor.dtype) if self._cast is None else self._cast(name, merged)


def _merged(name: str, weight: Tensor, parts: dict[str, Tensor], settings: LoraSettings) -> Tensor:
    """[out, in] float32, by the very layer that training used."""
    merging.require_shape(name, tuple(weight.shape), parts)
    if weight.dtype not in _FLOATS:
        raise UnsupportedModel(f"The adapter does not fit this model: type of {name}.")
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.float(), requires_grad=False)
    layer = LoraLinear(linear, settings, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for part, value in parts.items():
            layer.get_parameter(part).copy_(value)
    return layer.merged_weight()


def _cast_to(dtype: str) -> Change:
    wanted = cast(torch.dtype, getattr(torch, dtype))
    return lambda _, tensor: tensor.to(wanted) if tensor.dtype in _FLOATS else tensor


def _rewrite(
    base: _BaseWeights, file: Path, target: Path, change: Change, on_progress: merging.Progress
) -> None:
    """Copy one weight file, each tensor made plain and through `change`."""
    changed: dict[str, Tensor] = {}
    with _opened(file) as tensors:
        names = list(tensors.keys())
        for number, name in enumerate(names, 1):
            plain = base.plain(name, tensors.get_tensor(name))
            if plain is not None:
                changed[name] = change(name, plain).contiguous()
            on_progress(number / len(names))
    save_file(changed, target, metadata={"format": "pt"})


@torch.no_grad()
def _log_probs(
    model: Any, prompts: list[list[int]], device: torch.device
) -> Iterator[NDArray[np.float32]]:
    """For each prompt [T, V] log-probabilities of the next token."""
    model.eval()
    for prompt in prompts:
        logits = model(input_ids=torch.tensor([prompt], device=device), use_cache=False).logits
        yield logits[0].float().log_softmax(-1).cpu().numpy()


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointCorrupt(f"{file.name} cannot be read: {error}") from error
