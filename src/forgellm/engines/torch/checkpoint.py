"""A checkpoint's files: each process that sees the folder writes a share of the tensors, each whole, so
that any number of processes, or either engine, reads them again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from forgellm.atomic import storage_error
from forgellm.child import error_of
from forgellm.engines.checkpoint_files import (
    OPTIMIZER_STEM,
    RNG_FILE,
    optimizer_files,
    share_name,
)
from forgellm.engines.torch import load
from forgellm.engines.torch.process_group import Group
from forgellm.engines.torch.sharding import fill, like, whole
from forgellm.errors import CheckpointCorrupt

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save_model(model: Any, folder: Path | None, group: Group) -> None:
    """All weights as they are, in Hugging Face layout, into a new folder (None: another makes it)."""
    if group.size == 1:
        model.save_pretrained(folder)
        return
    if folder is not None:
        folder.mkdir()
    if getattr(model, "_weight_conversions", None):  # stored otherwise than it computes
        state = _gathered(model, keep=group.rank == 0)
        if folder is not None:
            model.save_pretrained(folder, state_dict=state)
        group.meet()
        return
    files = write_shares(group, folder, "model", _distinct(model))
    if folder is not None:
        model.config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
        if len(set(files.values())) > 1:
            size = sum(p.numel() * p.element_size() for _, p in _distinct(model))
            index = {"metadata": {"total_size": size}, "weight_map": files}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def load_model(model: nn.Module, folder: Path) -> None:
    """Give `model`, shared out or not, the weights of a folder. Raises UnsupportedModel."""
    saved = load.load_model(folder, torch.float32, torch.device("cpu")).state_dict()
    for name, own in model.state_dict().items():
        fill(own, saved[name])


def save_optimizer(
    optimizer: torch.optim.Optimizer,
    trainable: dict[str, nn.Parameter],
    folder: Path | None,
    group: Group,
) -> list[str]:
    """Moments, and the first process's random state; the names of the files."""
    tensors = [
        (f"{name}.{key}", optimizer.state[parameter][key])
        for name, parameter in trainable.items()
        for key in _MOMENTS
        if parameter in optimizer.state
    ]
    files = write_shares(group, folder, OPTIMIZER_STEM, tensors)
    if folder is not None:
        random = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            random["cuda"] = torch.cuda.get_rng_state()
        save_file(random, folder / RNG_FILE)
    return [*sorted(set(files.values())), RNG_FILE]


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    trainable: dict[str, nn.Parameter],
    folder: Path,
    group: Group,
) -> None:
    """Raises CheckpointCorrupt."""
    state: dict[str, Tensor] = {}
    try:
        for file in optimizer_files(folder):
            state |= load_file(file)
        random = load_file(folder / RNG_FILE)
    except (OSError, SafetensorError) as error:
        raise CheckpointCorrupt(f"The optimiser state cannot be read: {error}") from error
    for name, parameter in trainable.items():
        optimizer.state[parameter] = {
            key: value if key == "step" else like(parameter, value)
            for key in _MOMENTS
            if (value := state.get(f"{name}.{key}")) is not None
        }
    if "cpu" in random:
        torch.set_rng_state(random["cpu"])
    if "cuda" in random and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.set_rng_state(random["cuda"])
    if group.rank:  # chance of its own, which follows from the first process's
        torch.manual_seed(int(torch.randint(2**31, ())) + group.rank)


def write_shares(
    group: Group, folder: Path | None, stem: str, tensors: Iterable[tuple[str, Tensor]]
) -> dict[str, str]:
    """The file of each tensor. The first process alone names the folder; all must take part.

    Raises DiskFull, TrainingFailed, in all.
    """
    shared = Path(group.share(None if folder is None else str(folder)))
    writers = [rank for rank, sees in enumerate(group.gather(shared.is_dir())) if sees]
    sizes = [0] * len(writers)
    files, own = {}, {}
    for name, tensor in tensors:
        number = sizes.index(min(sizes))
        sizes[number] += tensor.numel()
        files[name] = share_name(stem, number, len(writers))
        value = whole(tensor)
        if writers[number] == group.rank:
            own[name] = value.detach().cpu().contiguous()
    problem = None
    try:
        if group.rank in writers:
            save_file(own, shared / share_name(stem, writers.index(group.rank), len(writers)))
    except (OSError, SafetensorError) as error:
        problem = storage_error("a checkpoint", error).to_dict()
    for found in group.gather(problem):
        if found is not None:
            raise error_of(found)
    return files


def _distinct(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Weights by the name under which they are stored; tied ones once."""
    parameters = dict(model.named_parameters())  # which leaves out what is tied
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - parameters.keys()
    return [(name, value) for name, value in model.state_dict().items() if name not in tied]


def _gathered(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    found = {}
    for name, tensor in model.state_dict().items():
        value = whole(tensor)
        if keep:
            found[name] = value.cpu()
    return found
