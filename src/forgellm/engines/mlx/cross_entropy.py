"""Output head and cross-entropy in one, in chunks of rows, so that no `[B*T, vocab]` logits exist.

The gradient is formed in the forward pass, chunk by chunk, while the chunk's logits are still at
hand (the idea of Liger's fused linear cross-entropy, arXiv 2410.10989).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_map

CHUNK_BYTES = 128_000_000

# (head parameters, hidden [N, D]) -> logits [N, V]
Head = Callable[[dict[str, Any], mx.array], mx.array]


def chunk_rows(vocab_size: int) -> int:
    """Rows of logits that take about CHUNK_BYTES in float32."""
    return max(16, CHUNK_BYTES // (4 * vocab_size))


def token_losses(logits: mx.array, targets: mx.array) -> mx.array:
    """[N] float32 cross-entropies in nats. logits [N, V] of any type, targets [N] int."""
    losses: mx.array = _losses_and_log_sums(logits, targets)[0]
    return losses


def _forward(logits: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
    """[N] losses, and [N] log-sums that the gradient needs."""
    log_sums = mx.logsumexp(logits.astype(mx.float32), axis=-1)
    return log_sums - _at(logits, targets), log_sums


def _logits_gradient(primals: Any, cotangents: Any, outputs: Any) -> Any:
    """softmax(logits), less 1 at the targets, times the cotangents of the losses.

    MLX's own gradient holds four float32 arrays [N, V] at once. Here it is one, and none where the
    chain is compiled into one kernel; what is kept is in the type of the logits.
    """
    (logits, targets), (losses, log_sums) = primals, outputs
    d_losses = cotangents[0]
    d_logits = mx.exp(logits.astype(mx.float32) - log_sums[:, None]) * d_losses[:, None]
    d_wanted = mx.expm1(-losses) * d_losses  # precise where the target's probability is nearly 1
    d_logits = mx.put_along_axis(
        d_logits.astype(logits.dtype),
        targets[:, None],
        d_wanted.astype(logits.dtype)[:, None],
        axis=-1,
    )
    return d_logits, mx.zeros_like(targets)


_losses_and_log_sums = mx.custom_function(_forward)
_losses_and_log_sums.vjp(_logits_gradient)


def _at(logits: mx.array, targets: mx.array) -> mx.array:
    """[N] float32: the targets' logits."""
    return mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0].astype(mx.float32)


def chunked_losses(
    head: Head, params: dict[str, Any], hidden: mx.array, targets: mx.array, rows: int
) -> mx.array:
    """[N] float32 cross-entropies in nats, without a gradient. hidden [N, D], targets [N] int."""
    losses: list[mx.array] = []
    for start in range(0, hidden.shape[0], rows):
        part = slice(start, start + rows)
        logits = head(params, _after(losses[-1:], hidden[part]))
        losses.append(token_losses(logits, targets[part]))
    return mx.concatenate(losses)


def cross_entropy_sum(head: Head, rows: int) -> Callable[..., mx.array]:
    """The function (params, hidden [N, D], targets [N], weights [N]) -> sum of `weights` times the
    cross-entropies in nats, float32; differentiable in the head's params and in hidden."""

    chunk_loss = _chunk_loss(head)

    def forward(
        params: dict[str, Any], hidden: mx.array, targets: mx.array, weights: mx.array
    ) -> tuple[mx.array, dict[str, Any], mx.array]:
        return _in_chunks(chunk_loss, params, hidden, targets, weights, rows)

    def backward(primals: Any, cotangents: Any, outputs: Any) -> Any:
        params, _, targets, weights = primals
        _, d_params, d_hidden = outputs
        scale = cotangents[0]
        return (
            tree_map(lambda d, p: (d * scale).astype(p.dtype), d_params, params),
            (d_hidden * scale).astype(d_hidden.dtype),
            mx.zeros_like(targets),
            mx.zeros_like(weights),
        )

    with_gradients = mx.custom_function(forward)
    with_gradients.vjp(backward)

    def total_loss(
        params: dict[str, Any], hidden: mx.array, targets: mx.array, weights: mx.array
    ) -> mx.array:
        return with_gradients(params, hidden, targets, weights)[0]

    return total_loss


def target_log_probs(head: Head, rows: int) -> Callable[..., mx.array]:
    """The function (params, hidden [N, D], targets [N], counted [N]) -> [N] float32 log-probability
    of each target in nats, 0 where `counted` is 0; differentiable in the head's params and in
    hidden, for which the backward pass makes the logits once more."""
    weighted_losses = _chunk_loss(head)

    def forward(
        params: dict[str, Any], hidden: mx.array, targets: mx.array, counted: mx.array
    ) -> mx.array:
        return -chunked_losses(head, params, hidden, targets, rows) * counted

    def backward(primals: Any, cotangent: mx.array, output: Any) -> Any:
        params, hidden, targets, counted = primals
        _, d_params, d_hidden = _in_chunks(
            weighted_losses, params, hidden, targets, -cotangent * counted, rows
        )
        d_params = tree_map(lambda d, p: d.astype(p.dtype), d_params, params)
        return d_params, d_hidden, mx.zeros_like(targets), mx.zeros_like(counted)

    log_probs: Any = mx.custom_function(forward)
    log_probs.vjp(backward)
    return cast("Callable[..., mx.array]", log_probs)


def _chunk_loss(head: Head) -> Callable[..., Any]:
    """(params, hidden [n, D], targets [n], weights [n]) -> the weighted sum of the cross-entropies,
    and its gradients in params and in hidden."""

    def chunk_loss(
        params: dict[str, Any], hidden: mx.array, targets: mx.array, weights: mx.array
    ) -> mx.array:
        return (token_losses(head(params, hidden), targets) * weights).sum()

    return cast("Callable[..., Any]", mx.value_and_grad(chunk_loss, argnums=(0, 1)))


def _in_chunks(
    loss_and_gradients: Callable[..., Any],
    params: dict[str, Any],
    hidden: mx.array,
    targets: mx.array,
    weights: mx.array,
    rows: int,
) -> tuple[mx.array, dict[str, Any], mx.array]:
    """What `_chunk_loss` says of all rows, `rows` of them at a time."""
    total = mx.zeros((), dtype=mx.float32)
    d_params = tree_map(lambda p: mx.zeros(p.shape, mx.float32), params)
    d_hidden: list[mx.array] = []
    for start in range(0, hidden.shape[0], rows):
        part = slice(start, start + rows)
        rows_hidden = _after([*d_hidden[-1:], *d_params.values()], hidden[part])
        loss, (d_p, d_h) = loss_and_gradients(params, rows_hidden, targets[part], weights[part])
        total = total + loss
        d_params = tree_map(lambda a, b: a + b, d_params, d_p)
        d_hidden.append(d_h)
    return total, d_params, mx.concatenate(d_hidden)


def _after(earlier: list[mx.array], value: mx.array) -> mx.array:
    """`value`, not computed with before these are: MLX would begin all chunks before it ends one,
    and so hold the logits of all."""
    depending: mx.array = mx.depends([value], earlier)[0]
    return depending
