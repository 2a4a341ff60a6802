"""Whether the machine has room for one more model beside those that are loaded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from forgellm import hardware
from forgellm.catalog.facts import read_facts
from forgellm.catalog.safety import check_model_files
from forgellm.errors import DoesNotFit
from forgellm.generation.loading import Source
from forgellm.hardware import GB
from forgellm.model_server.slot import Slot

_MARGIN = 1.1  # buffers, and the caches of an answer


def require_room_beside(source: Source, staying: Iterable[Slot], leaving: Iterable[Slot]) -> None:
    """Raises DoesNotFit where `source` needs more than is free once the models `leaving` are gone.

    The details name what the models that stay take.
    """
    needed = int(weight_bytes(source) * _MARGIN)
    held = {slot: _memory_bytes(slot) for slot in staying}
    room_made = sum(_memory_bytes(slot) for slot in leaving)
    free = _free_bytes(held_bytes=sum(held.values()) + room_made) + room_made
    loaded = [_item(slot, num_bytes) for slot, num_bytes in held.items() if num_bytes]
    if needed <= free:
        return
    names = ", ".join(
        f"{item['adapter_path'] or item['model_name']} takes {item['memory_usage_gb']:.1f} GB"
        for item in loaded
    )
    raise DoesNotFit(
        f"The model needs about {needed / GB:.1f} GB, and beside the others {free / GB:.1f} GB are"
        f" free{f'; {names}' if names else ''}",
        suggestion='Unload one of them, or load without "beside": the others then make room.',
        details={
            "needed_gb": round(needed / GB, 6),
            "available_gb": round(free / GB, 6),
            "loaded": loaded,
        },
    )


def weight_bytes(source: Source) -> int:
    """About what the weights take in memory, from their headers alone. Adapters are merged in.

    Raises UnsupportedModel.
    """
    facts = read_facts(source.model, check_model_files(source.model))
    if facts.quantization:
        return facts.size_bytes  # they stay as they are
    engine = hardware.default_engine()[0] if source.engine == "auto" else source.engine
    dtype = hardware.default_dtype(engine)[0] if source.dtype == "auto" else source.dtype
    return facts.num_parameters * (2 if dtype == "bfloat16" else 4)


def _free_bytes(held_bytes: int) -> int:
    free = hardware.training_memory_bytes()
    working_set = hardware.metal_working_set_bytes()
    return free if working_set is None else max(0, min(free, working_set - held_bytes))


def _memory_bytes(slot: Slot) -> int:
    model = slot.model  # once: it may be given up meanwhile
    return model.engine.memory_bytes() if model else 0


def _item(slot: Slot, num_bytes: int) -> dict[str, Any]:
    return {
        "model_name": slot.request.model_name,
        "adapter_path": slot.request.adapter_path,
        "memory_usage_gb": round(num_bytes / GB, 4),
    }
