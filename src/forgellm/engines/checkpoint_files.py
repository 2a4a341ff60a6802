"""The files of a checkpoint that a resume needs, the same for every engine.

`optimizer.safetensors` holds, for each trained parameter, `<name>.exp_avg` and `<name>.exp_avg_sq`
(float32, the parameter's shape) and `<name>.step` (a number): an engine continues what another
began. Several processes write the tensors, each whole, to a file each: `optimizer-00001-of-00004`.
`rng.safetensors` holds an entry for each source of chance that its writer had; an engine takes those
it knows.
"""

from pathlib import Path

OPTIMIZER_STEM = "optimizer"
OPTIMIZER_FILE = "optimizer.safetensors"
RNG_FILE = "rng.safetensors"


def optimizer_files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{OPTIMIZER_STEM}*.safetensors"))


def share_name(stem: str, number: int, count: int) -> str:
    """The file of one of several writers, counted from 0, as Hugging Face names them."""
    return (
        f"{stem}.safetensors"
        if count == 1
        else f"{stem}-{number + 1:05d}-of-{count:05d}.safetensors"
    )
