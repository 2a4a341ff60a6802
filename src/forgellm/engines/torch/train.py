"""The torch training engine: one model, its trainable weights and AdamW."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from forgellm.data.batches import Batch, PairBatch
from forgellm.engines import adapter
from forgellm.engines.base import EngineInfo, ProcessMetrics, StepMetrics
from forgellm.engines.layers import last_blocks
from forgellm.engines.preference import preference_figures
from forgellm.engines.torch import adapters, checkpoint, load, memory
from forgellm.engines.torch.block import use_closed_forms
from forgellm.engines.torch.in_training import TorchAnswers
from forgellm.engines.torch.lora import add_lora, left_out
from forgellm.engines.torch.packing import Packing
from forgellm.engines.torch.passes.compiler import compiler_version
from forgellm.engines.torch.preference import answer_log_probs, preference_sums
from forgellm.engines.torch.process_group import process_group
from forgellm.engines.torch.quantised import num_parameters
from forgellm.engines.torch.row_threads import RowThreads
from forgellm.engines.torch.scoring import loss_sum, prove_packing
from forgellm.engines.torch.sharding import (
    Sharded,
    num_local,
    one_copy_at_a_time,
    shard,
    whole,
)
from forgellm.errors import ConfigError, UnsupportedModel
from forgellm.schema.recipe import Recipe

_NORM_EPSILON = 1e-6  # as in torch's own clipping


class TorchTrainEngine:
    """See `engines.base.TrainEngine`."""

    _totals: Tensor
    _num_terms: int
    _num_tokens: int

    def __init__(self, recipe: Recipe, model_path: Path) -> None:
        memory.keep_freed_memory()
        self.group = process_group()
        self._recipe = recipe
        self._place = load.choose_placement(recipe.dtype)
        torch.manual_seed(recipe.seed + self.group.rank)
        self._lora = None if recipe.fine_tune_type == "full" else adapter.settings_of(recipe)
        adapter.require_trainable(recipe, is_quantised=bool(load.affine_settings(model_path)))
        self._sharded: Sharded | None = None
        if recipe.parallelism == "fsdp" and self.group.size > 1:
            with one_copy_at_a_time(self.group, model_path):
                self._load(model_path, torch.device("cpu"), may_close=False)
                self._sharded = self._shard()
        else:
            self._load(model_path, self._place.device, may_close=True)
        self._trainable: dict[str, nn.Parameter] = {
            n: p for n, p in self.model.named_parameters() if p.requires_grad
        }
        self._row_threads = RowThreads() if self._may_share_rows() else RowThreads(1)
        self._optimizer = self._make_optimizer()
        self.info = self._describe()
        self._pending_terms = 0
        self._reset_counters()

    # --- one update -------------------------------------------------------------------------

    def step(self, batch: Batch, learning_rate: float, update: bool) -> None:
        with memory.out_of_memory_named(), self.group.losses_named():
            self._totals = self._backward(batch) + self._totals
            self._pending_terms += batch.num_terms
            self._num_terms += batch.num_terms
            self._num_tokens += batch.num_targets
            if update:
                self._update(learning_rate)

    def _backward(self, batch: Batch) -> Tensor:
        """Add the batch's gradients to what has gathered; its `_sums`."""
        parameters = list(self._trainable.values())
        if self._sharded or not self._lora:  # a second set of their gradients would not fit
            sums = (self._sharded or self._sums)(batch)
            sums[0].backward()
            return sums.detach()

        def work(part: Batch) -> tuple[Tensor, tuple[Tensor | None, ...]]:
            sums = self._sums(part)
            return sums.detach(), torch.autograd.grad(sums[0], parameters, allow_unused=True)

        found = self._row_threads.map(work, batch)
        for _, gradients in found:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if parameter.grad is None or gradient is None:
                    parameter.grad = parameter.grad if gradient is None else gradient
                else:
                    parameter.grad.add_(gradient)
        return torch.stack([sums for sums, _ in found]).sum(0)

    def _sums(self, batch: Batch) -> Tensor:
        """The loss summed over the batch's terms [1], or for pairs [4] with their figures."""
        device, dtype = self._place.device, self._place.dtype
        with self._compute_type():
            if not isinstance(batch, PairBatch):
                return loss_sum(self.model, batch, device, dtype)[None]
            log_probs = answer_log_probs(self.model, batch, device, dtype)
        return preference_sums(log_probs, batch, self._recipe)

    def _compute_type(self) -> torch.autocast:
        device, dtype = self._place.device, self._place.dtype
        enabled = not (self._lora or self._sharded) and dtype != torch.float32
        return torch.autocast(device.type, dtype=dtype, enabled=enabled)

    def _update(self, learning_rate: float) -> None:
        """Divide by the terms of all micro-batches, so that accumulation equals the big batch."""
        parameters = list(self._trainable.values())
        if self.group.size > 1 and not self._sharded:
            for parameter in parameters:  # of which others may have one
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        grads = [p.grad for p in parameters if p.grad is not None]
        if not self._sharded:
            self.group.sum_in_place(grads)
        (num_terms,) = self.group.sum([self._pending_terms])
        num_terms = max(1.0, num_terms)
        norm = nn.utils.get_total_norm(grads) / num_terms
        limit = self._recipe.max_grad_norm or float("inf")
        share = (limit / (norm + _NORM_EPSILON)).clamp(max=1.0) / num_terms
        torch._foreach_mul_(grads, share)  # once over all gradients for both
        self._grad_norm = whole(norm.detach())
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._pending_terms = 0

    # --- figures ----------------------------------------------------------------------------

    def read_metrics(self) -> StepMetrics:
        own = (self._num_tokens, memory.peak_bytes(self._place.device))
        loss, *pairs, num_terms = self.group.sum([*self._totals.tolist(), self._num_terms])
        processes = [
            ProcessMetrics(num_tokens, peak_bytes, host)
            for (num_tokens, peak_bytes), host in zip(
                self.group.gather(own), self.group.hosts, strict=True
            )
        ]
        metrics = StepMetrics(
            training_loss=loss / max(1, num_terms),
            grad_norm=float(self._grad_norm),
            num_tokens=sum(process.num_tokens for process in processes),
            peak_memory_bytes=max(process.peak_memory_bytes for process in processes),
            preference=preference_figures(pairs, int(num_terms)) if pairs else None,
            processes=tuple(processes),
        )
        self._reset_counters()
        return metrics

    def _reset_counters(self) -> None:
        self._totals = torch.zeros(1, device=self._place.device)
        self._grad_norm = torch.zeros((), device=self._place.device)
        self._num_terms = self._num_tokens = 0

    def validation_loss(self, batches: Iterable[Batch], should_stop: Callable[[], bool]) -> float:
        total, num_terms = 0.0, 0
        self.model.eval()
        try:
            for batch in batches:
                if should_stop():
                    break
                total += self._loss(batch)
                num_terms += batch.num_terms
        finally:
            self.model.train()
        total, terms = self.group.sum([total, num_terms])
        return total / terms if terms else float("nan")

    def _loss(self, batch: Batch) -> float:
        """The loss summed over the batch's terms, of this process's rows."""

        def loss(part: Batch) -> float:
            with torch.no_grad(), self.group.losses_named():
                return float((self._sharded or self._sums)(part)[0])

        if self._sharded:  # all must compute for one to have the weights
            return loss(batch if len(batch.tokens) else batch.padding_row())
        return sum(self._row_threads.map(loss, batch))

    @contextmanager
    def evaluating(self) -> Iterator[TorchAnswers]:
        self.model.eval()
        try:
            with (
                self._compute_type(),
                self._sharded.answering() if self._sharded else nullcontext(),
            ):
                yield TorchAnswers(self.model, self._place, self.info)
        finally:
            self.model.train()

    def rehearse(self, batch: Batch) -> int:
        """Forward and backward on `batch`, then as if nothing had happened; see the protocol."""
        device = self._place.device
        memory.reset_peak(device)
        rng = torch.get_rng_state()
        with memory.out_of_memory_named(), self.group.losses_named():
            self._backward(batch)
        self._optimizer.zero_grad(set_to_none=True)
        torch.set_rng_state(rng)
        moments = 8 * sum(num_local(p) for p in self._trainable.values())
        return memory.peak_bytes(device) + moments

    def available_bytes(self) -> int | None:
        return memory.available_bytes(self._place.device)

    # --- checkpoints ------------------------------------------------------------------------

    def save_weights(self, folder: Path | None, stem: str) -> list[str]:
        if self._lora is None:
            checkpoint.save_model(self.model, folder and folder / f"{stem}_model", self.group)
            return [f"{stem}_model"]
        name = f"{stem}_adapters.safetensors"
        adapters.save_adapter(self.model, folder and folder / name)
        return [name]

    def save_optimizer(self, folder: Path | None) -> list[str]:
        return checkpoint.save_optimizer(self._optimizer, self._trainable, folder, self.group)

    def load_weights(self, weights: Path) -> None:
        if self._lora is not None:
            adapters.copy_into(self.model, adapters.read_adapter(weights))
        else:
            checkpoint.load_model(self.model, weights)

    def restore(self, weights: Path, optimizer_folder: Path) -> None:
        self.load_weights(weights)
        checkpoint.restore_optimizer(self._optimizer, self._trainable, optimizer_folder, self.group)

    def adapter_config(self) -> dict[str, Any] | None:
        if self._lora is None:
            return None
        kind = str(self.model.config.model_type)
        return adapter.adapter_config(self._lora, self._layer_names, self._recipe.model_name, kind)

    # --- set-up -----------------------------------------------------------------------------

    def _load(self, model_path: Path, device: torch.device, *, may_close: bool) -> None:
        # Full fine-tuning keeps float32 weights, or small updates would be rounded away.
        dtype = self._place.dtype if self._lora else torch.float32
        self.model = load.load_model(model_path, dtype, device)
        packing = prove_packing(self.model.eval(), device, dtype)
        if packing is Packing.ONE_BY_ONE and not may_close:
            raise UnsupportedModel(
                f"{type(self.model).__name__} computes the documents of a row one by one, and "
                "processes that share its weights out would wait for each other's",
                suggestion="Train it in one process, or with parallelism ddp.",
            )
        self._layer_names = self._make_trainable()
        self.warnings = self._what_is_left_out()
        if may_close and device.type == "cpu" and packing is Packing.TOGETHER:
            use_closed_forms(self.model)
        if self._recipe.grad_checkpoint:
            self._checkpoint_gradients()
        self.model.train()

    def _what_is_left_out(self) -> list[str]:
        """What a user who asked for nothing special would not expect."""
        found = [left_out(self.model)] if self._lora and self._lora.target == "all" else []
        if getattr(self.model.config.get_text_config(), "output_router_logits", False):
            found.append(
                "The loss is the cross-entropy alone, without the term by which config.json "
                "(output_router_logits) would balance the experts."
            )
        return [sentence for sentence in found if sentence]

    def _checkpoint_gradients(self) -> None:
        if not self.model.supports_gradient_checkpointing:
            raise ConfigError.one(
                "grad_checkpoint", f"{type(self.model).__name__} has no gradient checkpointing"
            )
        self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def _make_trainable(self) -> list[str]:
        if self._lora is not None:
            return add_lora(self.model, self._lora, self._recipe.seed)
        parameters = dict(self.model.named_parameters())
        trained = set(last_blocks(parameters, self._recipe.num_layers))
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in trained)
        return []

    def _shard(self) -> Sharded:
        return shard(
            self.model,
            self._sums,
            self._place.device,
            gather_dtype=None if self._lora else self._place.dtype,
            cpu_offload=self._recipe.cpu_offload,
        )

    def _may_share_rows(self) -> bool:
        """On a CPU, and where no random numbers are drawn that the threads would take in turn."""
        dropouts = (m.p for m in self.model.modules() if isinstance(m, nn.Dropout))
        is_random = bool(self._recipe.lora_dropout) or any(dropouts)
        return self._place.device.type == "cpu" and not is_random

    def _make_optimizer(self) -> torch.optim.AdamW:
        """AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101), decay on matrices only."""
        matrices = [p for p in self._trainable.values() if p.ndim >= 2]
        others = [p for p in self._trainable.values() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": self._recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        fused = self._place.device.type in ("cpu", "cuda")
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, fused=fused)

    def _compiler(self) -> dict[str, str | None]:
        """Where a compiler of this machine made a part of what computes."""
        return {"cc": compiler_version()} if self._place.device.type == "cpu" else {}

    def _describe(self) -> EngineInfo:
        num_trainable = sum(p.numel() for p in self._trainable.values())
        total = num_parameters(self.model)
        return EngineInfo(
            engine="torch",
            device=self._place.device.type,
            dtype=self._place.dtype_name,
            dtype_reason=self._place.reason,
            num_parameters=total - num_trainable if self._lora else total,
            num_trainable=num_trainable,
            context_length=load.context_length(self.model),
            versions=load.versions() | self._compiler(),
        )
