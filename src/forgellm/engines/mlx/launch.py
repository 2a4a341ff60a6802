"""MLX processes that train together, started and watched by `mlx.launch`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from forgellm.engines.machines import Meeting, free_port
from forgellm.engines.stop_requests import command_of, passed_on
from forgellm.errors import ConfigError, WorkerDied


def launch(module_arguments: list[str], meeting: Meeting) -> None:
    """Run `python -m ...` in several processes of this machine, until all have ended well.

    Raises ConfigError, WorkerDied, StoppedWaiting.
    """
    if meeting.nnodes > 1:
        raise ConfigError.one(
            "nnodes",
            "machines with MLX are started by mlx.launch: mlx.launch --hostfile hosts.json -- forgellm train ...",
        )
    command = command_of(module_arguments)
    port = min(free_port(meeting.own_address), 65_000)  # the launcher takes it and the next ones
    launcher = [str(Path(sys.executable).with_name("mlx.launch")), "--backend", "ring"]
    numbers = ["-n", str(meeting.nproc_per_node), "--starting-port", str(port), "--"]
    with subprocess.Popen([*launcher, *numbers, *command], stdin=subprocess.DEVNULL) as process:
        with passed_on(command):
            process.wait()
    if process.returncode:
        raise WorkerDied(f"mlx.launch ended with exit status {process.returncode}")
