"""Several torch processes, started by torchrun's agent (`launch.py`): what they tell each other.

Weights and gradients travel over gloo or NCCL, everything else over gloo and over the agent's
key-value store. What is no tensor is JSON: nothing of ours is pickled.
"""

from __future__ import annotations

import functools
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import orjson
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import FileStore, PrefixStore, TCPStore  # type: ignore[attr-defined]

from forgellm.child import error_of
from forgellm.engines.process_group import (
    FIRST_MACHINE_VARIABLE,
    STORE_VARIABLE,
    Alone,
    is_led,
)
from forgellm.errors import ForgeError, PeerLost, PeerSilent

_TIMEOUT_VARIABLE = "FORGELLM_COLLECTIVE_TIMEOUT"
_TIMEOUT_SECONDS = 300.0
_LAST_WORDS_SECONDS = 5.0
_POLL_SECONDS = 0.05
_BUCKET_NUMBERS = 25_000_000  # of gradients that travel together
_SIGNS_OF_SILENCE = re.compile(r"time[d-]? ?out", re.I)
_SIGNS_OF_LOSS = re.compile(
    r"gloo/|NCCL (error|communicator)|connection (closed|reset|refused)|broken pipe|timed out", re.I
)


class OneProcess(Alone):
    """A process without others, asked as if it had some."""

    local_size = 1
    hosts = ("",)

    def sum(self, values: Sequence[float]) -> list[float]:
        return list(values)

    def sum_in_place(self, tensors: list[Tensor]) -> None:
        pass

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def share(self, value: Any) -> Any:
        return value

    def in_turn(self) -> AbstractContextManager[None]:
        return nullcontext()

    def losses_named(self) -> AbstractContextManager[None]:
        return nullcontext()


class TorchGroup:
    """See `engines.process_group.ProcessGroup`.

    Every wait for another process ends after 300 s (or FORGELLM_COLLECTIVE_TIMEOUT) in PeerLost, or
    in the error with which that process said goodbye.
    """

    def __init__(self) -> None:
        environment = os.environ
        timeout = timedelta(seconds=float(environment.get(_TIMEOUT_VARIABLE) or _TIMEOUT_SECONDS))
        # Each start and restart of the processes has another port of its own.
        attempt = f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
        store = _agents_store(environment[STORE_VARIABLE], timeout)
        self._store = PrefixStore(f"forgellm/{attempt}", store)
        self.size = int(environment["WORLD_SIZE"])
        self._local_rank = int(environment["LOCAL_RANK"])
        self.local_size = int(environment["LOCAL_WORLD_SIZE"])
        self.rank, timeout = self._own_rank(timeout)
        self._store.set_timeout(timeout)
        self._num_meetings = 0
        if torch.cuda.is_available():
            torch.cuda.set_device(self._local_rank)
        with self.losses_named():
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                store=PrefixStore("group", self._store),
                rank=self.rank,
                world_size=self.size,
                timeout=timeout,
            )
        self.hosts: list[str] = self.gather(socket.gethostname())

    def _own_rank(self, timeout: timedelta) -> tuple[int, timedelta]:
        """The first machine is the one that has the run, whatever torchrun's numbers; its patience is
        that of all."""
        rank = int(os.environ["RANK"])
        if FIRST_MACHINE_VARIABLE in os.environ:
            first = {"rank": rank - self._local_rank, "seconds": timeout.total_seconds()}
            self._store.set("first", orjson.dumps(first).decode())
        with self.losses_named():
            first = orjson.loads(self._store.get("first"))
        return (rank - first["rank"]) % self.size, timedelta(seconds=first["seconds"])

    @property
    def is_first_here(self) -> bool:
        return self._local_rank == 0

    # --- agreeing ---------------------------------------------------------------------------

    def any(self, flag: bool) -> bool:
        return self.sum([float(flag)])[0] > 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Over all processes, elementwise."""
        tensor = torch.tensor(values, dtype=torch.float64)
        with self.losses_named():
            dist.all_reduce(tensor)
        return tensor.tolist()

    def sum_in_place(self, tensors: list[Tensor]) -> None:
        """Over all processes, elementwise; small ones travel together."""
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            with self.losses_named():
                dist.all_reduce(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def gather(self, value: Any) -> list[Any]:
        """The JSON values of all processes, in their order."""
        data = torch.frombuffer(bytearray(orjson.dumps(value)), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with self.losses_named():
            dist.all_gather(sizes, torch.tensor([len(data)]))
            longest = max(int(size) for size in sizes)
            padded = torch.zeros(longest, dtype=torch.uint8)
            padded[: len(data)] = data
            found = [torch.empty_like(padded) for _ in range(self.size)]
            dist.all_gather(found, padded)
        return [
            orjson.loads(part[: int(size)].numpy().tobytes())
            for part, size in zip(found, sizes, strict=True)
        ]

    def share(self, value: Any) -> Any:
        """The first process's JSON value, in all."""
        return self.gather(value if self.rank == 0 else None)[0]

    def share_bytes(self, data: bytes | None) -> bytes:
        """The first process's bytes, in all."""
        size = torch.tensor([len(data or b"")])
        with self.losses_named():
            dist.broadcast(size, 0)
            tensor = torch.empty(int(size), dtype=torch.uint8)
            if self.rank == 0 and data:
                tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            if len(tensor):
                dist.broadcast(tensor, 0)
        return tensor.numpy().tobytes()

    # --- waiting ----------------------------------------------------------------------------

    def meet(self) -> None:
        self._num_meetings += 1
        key = f"meeting {self._num_meetings}"
        with self.losses_named():
            if self._store.add(key, 1) == self.size:
                self._store.set(f"{key} of all", "")
            while not self._store.check([f"{key} of all"]):
                if (error := self._last_words()) is not None:
                    raise error
                time.sleep(_POLL_SECONDS)

    @contextmanager
    def one_first(self) -> Iterator[None]:
        if not self.is_first_here:
            self.meet()
        yield
        if self.is_first_here:
            self.meet()

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """For what a machine has room for only once: its processes do it one after the other."""
        for _ in range(self._local_rank):
            self.meet()
        yield
        for _ in range(self.local_size - self._local_rank):
            self.meet()

    # --- losing each other ------------------------------------------------------------------

    def say_goodbye(self, error: ForgeError) -> None:
        """Tell the others why this process ends; the first who does so is heard."""
        words = {"rank": self.rank, "host": self.hosts[self.rank], "error": error.to_dict()}
        try:
            self._store.compare_set("last words", "", orjson.dumps(words).decode())
        except RuntimeError:
            return  # the store has gone with its machine

    @contextmanager
    def losses_named(self) -> Iterator[None]:
        """A wait in vain leaves as the error of the process that was waited for, or as PeerLost."""
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and not _SIGNS_OF_LOSS.search(str(error)):
                raise
            raise self._reason(error) from error

    def _reason(self, error: RuntimeError) -> ForgeError:
        deadline = time.monotonic() + _LAST_WORDS_SECONDS
        try:
            while time.monotonic() < deadline:
                if (words := self._last_words()) is not None:
                    return words
                time.sleep(_POLL_SECONDS)
        except RuntimeError:
            pass  # the store has gone with its machine
        first_line = str(error).strip().split("\n", 1)[0]
        kind = PeerSilent if _SIGNS_OF_SILENCE.search(first_line) else PeerLost
        return kind(
            f"Process {self.rank} of {self.size} lost the others: {first_line[:300]}",
            suggestion="Look for the process that ended first, or the machine that went away; then resume.",
        )

    def _last_words(self) -> ForgeError | None:
        if not self._store.check(["last words"]):
            return None
        words = orjson.loads(self._store.get("last words"))
        error = error_of(words["error"])
        if words["rank"] != self.rank and not error.message.startswith("Process "):
            error.message = f"Process {words['rank']} on {words['host']}: {error.message}"
        return error


Group = OneProcess | TorchGroup


def _agents_store(endpoint: str, timeout: timedelta) -> FileStore | TCPStore:
    """Where the agents meet, and the processes after them."""
    if os.path.isabs(endpoint):
        store = FileStore(endpoint)
        store.set_timeout(timeout)
        return store
    host, _, port = endpoint.rpartition(":")
    return TCPStore(host.strip("[]"), int(port), is_master=False, timeout=timeout)


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Those of one type and place that are neighbours, up to a size."""
    bucket: list[Tensor] = []
    numbers = 0
    for tensor in tensors:
        fits = bucket and (tensor.dtype, tensor.device) == (bucket[0].dtype, bucket[0].device)
        if bucket and not (fits and numbers + tensor.numel() <= _BUCKET_NUMBERS):
            yield bucket
            bucket, numbers = [], 0
        bucket.append(tensor)
        numbers += tensor.numel()
    if bucket:
        yield bucket


@functools.cache
def process_group() -> Group:
    """The one this process belongs to. Raises PeerLost."""
    return TorchGroup() if is_led() else OneProcess()
