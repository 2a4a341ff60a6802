"""What ended a trainer that could not say so itself, from the end of its log."""

from __future__ import annotations

from forgellm.runs.log_tail import tail_log
from forgellm.runs.store import Run

_NUM_LINES = 20
# Metal ends the whole process, past all of Python's error handling.
_CAUSES = (
    (
        "ImpactingInteractivity",
        "macOS ended the GPU's work because the display had to wait for it",
        "Let the display sleep, or lower batch_size and raise grad_accum_steps; then resume.",
    ),
    (
        "kIOGPUCommandBufferCallbackErrorTimeout",
        "macOS ended the GPU's work because one piece of it took too long",
        "Lower batch_size and raise grad_accum_steps, or lower max_seq_length; then resume.",
    ),
    (
        "kIOGPUCommandBufferCallbackErrorOutOfMemory",
        "The GPU ran out of memory",
        "Lower batch_size or max_seq_length, or set grad_checkpoint.",
    ),
)


def cause_of_death(run: Run) -> tuple[str, str]:
    """The reason in words, and what to do; that is empty where nothing is known."""
    last_words = " ".join(line.message for line in tail_log(run, _NUM_LINES))
    for sign, reason, suggestion in _CAUSES:
        if sign in last_words:
            return reason, suggestion
    return "The trainer ended without finishing", ""
