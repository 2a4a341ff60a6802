"""The MLX training engine: one model, its trainable weights and AdamW."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from forgellm.data.batches import Batch, PairBatch
from forgellm.engines import adapter, merging
from forgellm.engines.base import EngineInfo, StepMetrics
from forgellm.engines.layers import last_blocks, layer_index
from forgellm.engines.mlx import adapters, checkpoint, load, memory, optimizer
from forgellm.engines.mlx.attention import use_blocks
from forgellm.engines.mlx.cross_entropy import (
    chunk_rows,
    chunked_losses,
    cross_entropy_sum,
    target_log_probs,
)
from forgellm.engines.mlx.grad_checkpoint import checkpoint_blocks
from forgellm.engines.mlx.in_training import MlxAnswers
from forgellm.engines.mlx.preference import (
    DevicePairs,
    answer_sums,
    device_pairs,
    preference_sums,
)
from forgellm.engines.mlx.process_group import process_group
from forgellm.engines.mlx.random_state import random_state, set_random_state
from forgellm.engines.mlx.scoring import device_batch, packed_hidden_states, prove_packing
from forgellm.engines.mlx.tensor_files import Tensors
from forgellm.engines.preference import preference_figures
from forgellm.errors import ConfigError
from forgellm.schema.recipe import Recipe

_ARRAYS = 4  # of a batch without pairs


class MlxTrainEngine:
    """See `engines.base.TrainEngine`."""

    def __init__(self, recipe: Recipe, model_path: Path) -> None:
        memory.set_limits()
        self.group = process_group()
        self._recipe = recipe
        self._place = load.choose_placement(recipe.dtype)
        self._model_path = model_path
        full = recipe.fine_tune_type == "full"
        # Full fine-tuning keeps float32 weights, or small updates would be rounded away.
        self.model, self._config = load.load_model(
            model_path, mx.float32 if full else self._place.dtype
        )
        _require_possible(recipe, self._config)
        use_blocks(self.model)
        self._split = load.split_model(self.model.eval())
        self._vocab_size = load.vocab_size(self._split)
        own_rows = _rows_of_one(recipe.batch_size, self.group.size)
        prove_packing(self._split, self._place.dtype, self._vocab_size, own_rows)
        self._lora = None if full else adapter.settings_of(recipe)
        num_parameters = load.num_parameters(self.model)
        self._layer_names = self._make_trainable()
        if recipe.grad_checkpoint:
            checkpoint_blocks(self.model)
        mx.random.seed(recipe.seed)
        self.params: Tensors = self._trainable()
        self.moments = optimizer.no_moments(self.params)
        self.model.train()
        self._compile()
        self.info = self._describe(num_parameters)
        self.warnings = self._what_stays_here()
        self._grads: Tensors | None = None
        self._pending_terms = self._num_terms = self._num_tokens = 0
        self._totals, self._grad_norm = mx.zeros(1), mx.array(0.0)

    # --- one update -------------------------------------------------------------------------

    def step(self, batch: Batch, learning_rate: float, update: bool) -> None:
        with memory.out_of_memory_named():
            arrays = _device_arrays(batch)
            mx.eval(self._totals)  # one step is in flight while the next one is prepared
            sums, self._grads = self._add_gradients(self.params, self._grads, *arrays)
            self._totals = self._totals + sums
            self._pending_terms += batch.num_terms
            self._num_terms += batch.num_terms
            self._num_tokens += batch.num_targets
            if update:
                self._update(learning_rate)
            mx.async_eval(self._totals, self.params, self.moments, self._grads or [])

    def _update(self, learning_rate: float) -> None:
        """Divide by the terms of all micro-batches, so that accumulation equals the big batch."""
        assert self._grads is not None
        terms = self.group.sum(mx.array(float(self._pending_terms)))
        grads = self.group.sum_gradients(self._grads)
        self.params, self.moments, self._grad_norm = self._apply(
            self.params, grads, self.moments, mx.maximum(1.0, terms), mx.array(learning_rate)
        )
        self._grads, self._pending_terms = None, 0

    # --- the compiled functions ---------------------------------------------------------------

    def _compile(self) -> None:
        rows = chunk_rows(self._vocab_size)
        head_names = self._trainable_head_names()
        cross_entropy = cross_entropy_sum(self._head, rows)
        log_probs = target_log_probs(self._head, rows)

        def of_targets(function: Any, params: Tensors, arrays: tuple[mx.array, ...]) -> mx.array:
            tokens, targets, loss_mask, segment_ids = arrays
            hidden = self._hidden_states(params, tokens, segment_ids)
            head_params = {name: self._cast(params[name]) for name in head_names}
            return function(head_params, hidden, targets.reshape(-1), loss_mask.reshape(-1))

        def sums(params: Tensors, *arrays: mx.array) -> tuple[mx.array, mx.array]:
            """The loss summed over the batch's terms; [1] the same, or [4] with pairs' figures."""
            if len(arrays) == _ARRAYS:
                loss = of_targets(cross_entropy, params, arrays)
                return loss, loss[None]
            pairs = DevicePairs(*arrays[_ARRAYS:])
            answers = answer_sums(of_targets(log_probs, params, arrays[:_ARRAYS]), pairs)
            found = preference_sums(answers, pairs, self._recipe)
            return found[0], found

        sums_and_gradients = mx.value_and_grad(sums)

        def add_gradients(
            params: Tensors, grads: Tensors | None, *arrays: mx.array
        ) -> tuple[mx.array, Tensors]:
            (_, found), new = sums_and_gradients(params, *arrays)
            return found, new if grads is None else tree_map(mx.add, grads, new)

        def apply(
            params: Tensors,
            grads: Tensors,
            moments: optimizer.Moments,
            terms: mx.array,
            learning_rate: mx.array,
        ) -> tuple[Tensors, optimizer.Moments, mx.array]:
            grads = tree_map(lambda grad: grad / terms, grads)
            norm = optimizer.global_norm(grads)
            grads = optimizer.clipped(grads, norm, self._recipe.max_grad_norm)
            decay = self._recipe.weight_decay
            return *optimizer.adamw(params, grads, moments, learning_rate, decay), norm

        def eval_losses(params: Tensors, *arrays: mx.array) -> mx.array:
            """[N] cross-entropies of the targets, 0 where they do not count."""
            tokens, targets, loss_mask, segment_ids = arrays
            hidden = self._hidden_states(params, tokens, segment_ids)
            losses = chunked_losses(self._head, {}, hidden, targets.reshape(-1), rows)
            return losses * loss_mask.reshape(-1)

        random = [mx.random.state]  # dropout draws from it
        self._add_gradients = load.compiled(add_gradients, inputs=random, outputs=random)
        self._apply = load.compiled(apply)
        self._eval_losses = load.compiled(eval_losses)

    def _hidden_states(self, params: Tensors, tokens: mx.array, segment_ids: mx.array) -> mx.array:
        """[B*T, D] by these weights, in the compute type."""
        self._use({name: self._cast(value) for name, value in params.items()})
        return packed_hidden_states(self._split, tokens, segment_ids)

    def _use(self, params: Tensors) -> None:
        """Let the model compute with just these weights."""
        self.model.update(tree_unflatten(list(params.items())))

    def _cast(self, value: mx.array) -> mx.array:
        """To the compute type, or activations would be widened to the float32 of a trained weight.
        DoRA takes norms of whole weights, for which float32 stays."""
        return value if self._recipe.fine_tune_type == "dora" else value.astype(self._place.dtype)

    def _head(self, params: Tensors, hidden: mx.array) -> mx.array:
        self._use(params)
        return self._split.head(hidden)

    def _trainable_head_names(self) -> list[str]:
        """The trainable weights that the output head computes with, found by their gradient."""
        outside = {n: v for n, v in self.params.items() if layer_index(n) is None}
        if not outside:
            return []
        hidden = self._hidden_of([1, 2, 3])

        def total(params: Tensors) -> mx.array:
            return mx.square(self._head(params, hidden)).sum()

        grads = mx.grad(total)(outside)
        return [name for name, grad in grads.items() if bool(mx.any(grad != 0))]

    # --- figures ----------------------------------------------------------------------------

    def read_metrics(self) -> StepMetrics:
        with memory.out_of_memory_named():
            (loss, *pairs), num_terms = self._over_all(self._totals, self._num_terms)
            processes = self.group.gather(self._num_tokens, memory.peak_bytes())
            metrics = StepMetrics(
                training_loss=loss / max(1, num_terms),
                grad_norm=float(self._grad_norm),
                num_tokens=sum(process.num_tokens for process in processes),
                peak_memory_bytes=max(process.peak_memory_bytes for process in processes),
                preference=preference_figures(pairs, num_terms) if pairs else None,
                processes=processes,
            )
        self._totals, self._grad_norm = mx.zeros(1), mx.array(0.0)
        self._num_terms = self._num_tokens = 0
        return metrics

    def validation_loss(self, batches: Iterable[Batch], should_stop: Callable[[], bool]) -> float:
        total, num_terms = mx.zeros(1), 0
        self.model.eval()
        try:
            for batch in batches:
                if should_stop():
                    break
                if not len(batch.tokens):
                    continue
                with memory.out_of_memory_named():
                    total = total + self._eval_loss(batch)
                    mx.eval(total)
                num_terms += batch.num_terms
        finally:
            self.model.train()
            memory.release_freed()
        (loss,), num_terms = self._over_all(total, num_terms)
        return loss / num_terms if num_terms else float("nan")

    @contextmanager
    def evaluating(self) -> Iterator[MlxAnswers]:
        self.model.eval()
        self._use({name: self._cast(value) for name, value in self.params.items()})
        try:
            yield MlxAnswers(self._split, self._vocab_size, self.info)
        finally:
            self._use(self.params)
            self.model.train()
            memory.release_freed()

    def _eval_loss(self, batch: Batch) -> mx.array:
        """The loss summed over the batch's terms."""
        losses = self._eval_losses(self.params, *device_batch(batch))
        if not isinstance(batch, PairBatch):
            return losses.sum()
        pairs = device_pairs(batch)
        return preference_sums(answer_sums(-losses, pairs), pairs, self._recipe)[0]

    def _over_all(self, sums: mx.array, num_terms: int) -> tuple[list[float], int]:
        """Both summed over the processes."""
        found: Any = self.group.sum(sums).tolist()
        return found, int(self.group.sum(mx.array(num_terms)))

    def rehearse(self, batch: Batch) -> int:
        """Forward and backward on `batch`, then as if nothing had happened; see the protocol."""
        memory.reset_peak()
        random = random_state()
        with memory.out_of_memory_named():
            mx.eval(self._add_gradients(self.params, None, *_device_arrays(batch)))
        set_random_state(random)
        return memory.peak_bytes()

    def available_bytes(self) -> int | None:
        return memory.available_bytes()

    # --- checkpoints ------------------------------------------------------------------------

    def save_weights(self, folder: Path | None, stem: str) -> list[str]:
        if folder is None:
            return []
        self._use(self.params)
        if self._lora is not None:
            name = f"{stem}_adapters.safetensors"
            adapters.save_adapter(self.model, folder / name)
            return [name]
        checkpoint.save_model(self.model, self._model_path, folder / f"{stem}_model")
        return [f"{stem}_model"]

    def save_optimizer(self, folder: Path | None) -> list[str]:
        if folder is None:
            return []
        return checkpoint.save_optimizer(self.moments, folder)

    def load_weights(self, weights: Path) -> None:
        if self._lora is not None:
            adapters.copy_into(self.model, adapters.read_adapter(weights))
        else:
            checkpoint.restore_model(self.model, weights)
        self.params = self._trainable()

    def restore(self, weights: Path, optimizer_folder: Path) -> None:
        self.load_weights(weights)
        self.moments = checkpoint.restore_optimizer(self.params, optimizer_folder)

    def adapter_config(self) -> dict[str, Any] | None:
        if self._lora is None:
            return None
        kind = str(self._config.get("model_type"))
        return adapter.adapter_config(self._lora, self._layer_names, self._recipe.model_name, kind)

    # --- set-up -----------------------------------------------------------------------------

    def _make_trainable(self) -> list[str]:
        if self._lora is not None:
            return adapters.add_lora(self.model, self._lora, self._recipe.seed)
        return []

    def _what_stays_here(self) -> list[str]:
        """That what is learned cannot be published, where mlx-lm lays weights out anew."""
        names = [f"{layer}.weight" for layer in self._layer_names] or list(self.params)
        absent = merging.not_stored(names, self._model_path)
        if not absent:
            return []
        return [
            f"What is learned of {absent[0]}"
            + (f" and {len(absent) - 1} more" if len(absent) > 1 else "")
            + " can be used by the MLX engine but not published: mlx-lm lays these weights out "
            "otherwise than the model's files. The torch engine can publish it."
        ]

    def _trainable(self) -> Tensors:
        if self._lora is not None:
            return adapters.adapter_tensors(self.model)
        parameters = dict(tree_flatten(self.model.parameters()))
        return {n: parameters[n] for n in last_blocks(parameters, self._recipe.num_layers)}

    def _hidden_of(self, ids: list[int]) -> mx.array:
        return self._split.trunk(mx.array([ids]), None)[0]

    def _describe(self, num_parameters: int) -> EngineInfo:
        return EngineInfo(
            engine="mlx",
            device=self._place.device,
            dtype=self._place.dtype_name,
            dtype_reason=self._place.reason,
            num_parameters=num_parameters,
            num_trainable=sum(int(value.size) for value in self.params.values()),
            context_length=load.context_length(self._config),
            versions=load.versions(),
        )


def _device_arrays(batch: Batch) -> tuple[mx.array, ...]:
    """Those of `device_batch`, and for pairs those of `device_pairs` after them."""
    pairs = device_pairs(batch) if isinstance(batch, PairBatch) else ()
    return (*device_batch(batch), *pairs)


def _require_possible(recipe: Recipe, config: dict[str, Any]) -> None:
    adapter.require_trainable(recipe, is_quantised=bool(config.get("quantization")))
    if recipe.grad_checkpoint and recipe.lora_dropout:
        # MLX draws another mask when it computes a block again: wrong gradients, unnoticed.
        raise ConfigError.one("lora_dropout", "must be 0 with grad_checkpoint on the MLX engine")


def _rows_of_one(batch_size: int, num_ranks: int) -> int:
    if batch_size % num_ranks:
        raise ConfigError.one("batch_size", f"must be a multiple of the {num_ranks} processes")
    return batch_size // num_ranks
