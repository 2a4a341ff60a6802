"""What several processes cannot do is refused before any of them starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from forgellm import hardware
from forgellm.engines.machines import meeting_at
from forgellm.errors import ConfigError
from forgellm.paths import Workspace
from forgellm.training.sharing import require_sharing
from tiny_workspace import tiny_recipe


@pytest.mark.parametrize(
    ("fields", "num_gpus", "words"),
    [
        ({"nproc_per_node": 2}, 1, "nproc_per_node: is one for each GPU, and this machine has 1"),
        ({"cpu_offload": True}, 0, "cpu_offload: is for fsdp, in several processes"),
        ({"cpu_offload": True, "nproc_per_node": 2}, 0, "cpu_offload: there is no GPU"),
        ({"engine": "mlx", "nproc_per_node": 2, "parallelism": "fsdp"}, 0, "has ddp alone"),
        ({"engine": "mlx", "hosts": ["b"]}, 0, "hosts: Macs train together under mlx.launch"),
        ({"hosts": ["b"]}, 0, "hosts: no machine is named in hosts.toml"),
    ],
)
def test_what_cannot_be_shared_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    num_gpus: int,
    words: str,
) -> None:
    monkeypatch.setattr(hardware, "gpu_names", lambda: ["A GPU"] * num_gpus)
    with pytest.raises(ConfigError, match=words):
        require_sharing(tiny_recipe(**{"engine": "torch", **fields}), Workspace(tmp_path))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"nproc_per_node": 3}, "batch_size: must be a multiple of the 3 processes"),
        ({"nnodes": 2}, "rdzv_endpoint: needed with nnodes"),
        ({"nnodes": 3, "hosts": ["b"]}, "nnodes: is one more than hosts"),
        ({"nnodes": 2, "rdzv_endpoint": "-oProxyCommand=x:1"}, "rdzv_endpoint"),
    ],
)
def test_a_recipe_that_cannot_be_shared_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny_recipe(**fields)


def test_the_machine_that_the_meeting_point_names_is_the_first() -> None:
    own = meeting_at("127.0.0.1:29400", 1, 2, 0)
    assert own.is_first
    other = meeting_at("192.0.2.7:29400", 1, 2, 0)
    assert not other.is_first
    assert not meeting_at("127.0.0.1:29400", 1, 2, 0, is_first=False).is_first
    with pytest.raises(ConfigError, match="is not known here"):
        meeting_at("no-such-machine.invalid:29400", 1, 2, 0)
    with pytest.raises(ConfigError, match="port"):
        meeting_at("127.0.0.1:99999", 1, 2, 0)
