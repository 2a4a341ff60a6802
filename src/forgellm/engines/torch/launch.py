"""Torch processes that train together, started and watched by torchrun's own agent.

The agent runs inside the calling process: it meets the agents of other machines, starts one process
per GPU (or as many as asked for), and starts all of them again where one is lost.
"""

from __future__ import annotations

import os
import signal

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from forgellm.engines.machines import Meeting
from forgellm.engines.process_group import FIRST_MACHINE_VARIABLE, STORE_VARIABLE
from forgellm.engines.stop_requests import command_of, passed_on
from forgellm.errors import PeerLost, PeerSilent, TrainingFailed, WorkerDied
from forgellm.hardware import num_cores

_RUN_ID = "forgellm"
_JOIN_SECONDS = 600
_SHUTDOWN_SECONDS = 10
_VICTIMS = (PeerLost.exit_code, PeerSilent.exit_code, -signal.SIGTERM)


def launch(module_arguments: list[str], meeting: Meeting) -> None:
    """Run `python -m ...` in several processes, until all have ended well; stop requests reach them.

    Raises WorkerDied, StoppedWaiting, and TrainingFailed where the machines do not meet.
    """
    command = command_of(module_arguments)
    os.environ.update(_environment(meeting))
    config = LaunchConfig(
        min_nodes=meeting.nnodes,
        max_nodes=meeting.nnodes,
        nproc_per_node=meeting.nproc_per_node,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),  # all goes where ours goes
        run_id=_RUN_ID,
        rdzv_backend="c10d",
        rdzv_endpoint=meeting.endpoint,
        rdzv_configs={
            "timeout": _JOIN_SECONDS,
            "is_host": meeting.is_first,
            "store_type": "file" if meeting.nnodes == 1 else "tcp",
        },
        max_restarts=meeting.max_restarts,
        local_addr=meeting.own_address,
        signals_to_handle="SIGQUIT",
        shutdown_timeout=_SHUTDOWN_SECONDS,
    )
    try:
        with passed_on(command):
            elastic_launch(config, command[0])(*command[1:])
    except ChildFailedError as error:
        raise _death_of(error, meeting) from error
    except RendezvousError as error:
        raise TrainingFailed(
            f"The {meeting.nnodes} machines did not meet at {meeting.endpoint}: {error}",
            suggestion="Start the command on every machine within ten minutes, and open the port between them.",
        ) from error


def _environment(meeting: Meeting) -> dict[str, str]:
    found = {
        STORE_VARIABLE: meeting.endpoint,
        # The processes keep what they agree on in the first machine's store, which outlives them.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    if meeting.is_first:
        found[FIRST_MACHINE_VARIABLE] = "1"
    if "OMP_NUM_THREADS" not in os.environ:
        found["OMP_NUM_THREADS"] = str(max(1, num_cores() // meeting.nproc_per_node))
    if meeting.own_interface:
        for library in ("GLOO", "NCCL"):
            found.setdefault(f"{library}_SOCKET_IFNAME", meeting.own_interface)
    return found


def _death_of(error: ChildFailedError, meeting: Meeting) -> WorkerDied:
    """Of the first that ended, and not for the end of another."""
    failures = list(error.failures.values())
    was_silent = any(failure.exitcode == PeerSilent.exit_code for failure in failures)
    causes = [f for f in failures if f.exitcode not in _VICTIMS] or failures
    failure = min(causes, key=lambda cause: cause.timestamp)
    where = "on the first machine " if meeting.nnodes > 1 and meeting.is_first else ""
    if failure.exitcode == -signal.SIGKILL and was_silent:
        what = "did not answer, and was ended"
    elif failure.exitcode in (PeerLost.exit_code, PeerSilent.exit_code):
        what = "lost the others; trainer.log says how"
    elif failure.exitcode < 0:
        what = f"was ended by {signal.Signals(-failure.exitcode).name}"
    else:
        what = f"ended with exit status {failure.exitcode}; trainer.log says why"
    restarts = f", after {meeting.max_restarts} new starts" if meeting.max_restarts else ""
    return WorkerDied(
        f"Process {failure.local_rank} of {meeting.nproc_per_node} {where}{what}{restarts}",
        details={"exit_code": failure.exitcode},
    )
