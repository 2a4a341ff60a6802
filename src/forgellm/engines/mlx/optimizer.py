"""AdamW with gradient clipping, as the torch engine has it, so that either continues the other's."""

from __future__ import annotations

import math
from typing import NamedTuple

import mlx.core as mx

from forgellm.engines.mlx.tensor_files import Tensors

BETAS = (0.9, 0.999)
EPS = 1e-8


class Moments(NamedTuple):
    """The optimiser's memory of each parameter, float32, and how many updates it has seen."""

    exp_avg: Tensors
    exp_avg_sq: Tensors
    step: mx.array


def no_moments(params: Tensors) -> Moments:
    zeros = {name: mx.zeros(value.shape, mx.float32) for name, value in params.items()}
    return Moments(zeros, dict(zeros), mx.array(0.0))


def global_norm(grads: Tensors) -> mx.array:
    return mx.sqrt(sum(mx.square(grad.astype(mx.float32)).sum() for grad in grads.values()))


def clipped(grads: Tensors, norm: mx.array, max_norm: float) -> Tensors:
    """Gradients scaled down so that their global norm is at most `max_norm`; 0 leaves them."""
    if not max_norm:
        return grads
    factor = mx.minimum(1.0, max_norm / (norm + 1e-6))
    return {name: grad * factor for name, grad in grads.items()}


def adamw(
    params: Tensors, grads: Tensors, moments: Moments, learning_rate: mx.array, decay: float
) -> tuple[Tensors, Moments]:
    """New parameters and moments (Loshchilov and Hutter 2017, arXiv 1711.05101).

    Decay falls on matrices only. A NaN in the gradients leaves as NaN.
    """
    b1, b2 = BETAS
    step = moments.step + 1
    # 1 - b^step, without the digits that float32 would lose in the difference
    correction1, correction2 = (-mx.expm1(step * math.log(b)) for b in BETAS)
    new_params, exp_avg, exp_avg_sq = {}, {}, {}
    for name, grad in grads.items():
        m = b1 * moments.exp_avg[name] + (1 - b1) * grad
        v = b2 * moments.exp_avg_sq[name] + (1 - b2) * mx.square(grad)
        denominator = mx.sqrt(v) / mx.sqrt(correction2) + EPS
        kept = params[name]
        if kept.ndim >= 2:
            kept = kept * (1 - learning_rate * decay)
        new_params[name] = kept - learning_rate / correction1 * m / denominator
        exp_avg[name], exp_avg_sq[name] = m, v
    return new_params, Moments(exp_avg, exp_avg_sq, step)
