"""Whether several processes can share a run as its recipe asks, before any of them starts."""

from __future__ import annotations

from forgellm import hardware
from forgellm.engines.registry import engine_name
from forgellm.errors import ConfigError
from forgellm.hosts.file import find_hosts
from forgellm.paths import Workspace
from forgellm.schema.recipe import Recipe


def require_sharing(recipe: Recipe, workspace: Workspace) -> None:
    """Raises ConfigError naming every field that asks for what is not there."""
    problems = {**_of_engine(recipe), **_of_hardware(recipe)}
    if problems:
        raise ConfigError([{"field": name, "message": text} for name, text in problems.items()])
    if recipe.hosts:
        find_hosts(workspace, recipe.hosts)


def _of_engine(recipe: Recipe) -> dict[str, str]:
    problems = {}
    if engine_name(recipe.engine) == "mlx" and recipe.num_processes > 1:
        if recipe.num_machines > 1:
            field = "hosts" if recipe.hosts else "nnodes"
            problems[field] = "Macs train together under mlx.launch: see docs/platforms.md"
        if recipe.parallelism == "fsdp":
            problems["parallelism"] = "the mlx engine has ddp alone"
    return problems


def _of_hardware(recipe: Recipe) -> dict[str, str]:
    problems = {}
    num_gpus = len(hardware.gpu_names())
    if num_gpus and recipe.nproc_per_node > num_gpus:
        problems["nproc_per_node"] = f"is one for each GPU, and this machine has {num_gpus}"
    if recipe.cpu_offload:
        if recipe.parallelism == "ddp" or recipe.num_processes == 1:
            problems["cpu_offload"] = "is for fsdp, in several processes"
        elif not num_gpus:
            problems["cpu_offload"] = "there is no GPU whose memory it would spare"
    return problems
