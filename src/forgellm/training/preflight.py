"""The rehearsal: one real step before the first update, so that a run does not fail later."""

from __future__ import annotations

from forgellm import hardware
from forgellm.data.prepared import PreparedData
from forgellm.engines.base import TrainEngine
from forgellm.errors import OutOfMemory
from forgellm.hardware import GB
from forgellm.training.estimate import Device
from forgellm.training.fitting import Room, suggest_fitting
from forgellm.training.plan import Plan


def rehearse(engine: TrainEngine, data: PreparedData, plan: Plan) -> dict[str, float]:
    """One real worst-case step and validation batch; returns the figures for the run's record.

    Raises OutOfMemory, with what would fit, if the machine cannot do it.
    """
    batch = data.worst_case_batch()
    seq_len = batch.tokens.shape[1]
    available = engine.available_bytes() or hardware.memory_available_bytes()
    try:
        measured = engine.rehearse(batch)
        engine.validation_loss([batch], lambda: False)
    except OutOfMemory as error:
        device = Device(engine.info.engine, engine.info.device, engine.info.dtype)
        room = Room(device, available, hardware.memory_available_bytes())
        error.suggestion, change = suggest_fitting(plan.model.facts, plan.recipe, seq_len, room)
        error.details["fitting"] = change
        raise
    return {
        "estimated_gb": round(plan.estimate.total / GB, 3),
        "measured_gb": round(measured / GB, 3),
        "estimate_error": round(plan.estimate.total / measured - 1, 3),
        "available_gb": round(available / GB, 3),
    }
