"""The state of MLX's random numbers, taken and set: dropout and sampling draw from it."""

from __future__ import annotations

import mlx.core as mx


def random_state() -> mx.array:
    """[2] uint32."""
    return mx.array(mx.random.state[0])


def set_random_state(state: mx.array) -> None:
    """MLX has no call for this, but makes of a seed the two halves of it."""
    high, low = state.tolist()
    mx.random.seed((high << 32) | low)
