"""Work that outlasts a request: one heavy job at a time, and lanes of their own for what mostly waits.

Jobs live as long as the web server. What they make is on the disk, whole or not at all.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Literal

from forgellm.errors import Conflict, ForgeError, NotFound, Unavailable
from forgellm.paths import iso_utc
from forgellm.schema.publishing import JobItem, JobKind, JobStatus

Lane = Literal["heavy", "download", "questions"]
Listener = Callable[[dict[str, Any]], None]

MAX_WAITING = 32
MAX_FINISHED = 100
_REPORT_SECONDS = 0.25
_ENDED = frozenset[JobStatus]({"completed", "failed", "cancelled"})
_log = logging.getLogger(__name__)


class JobCancelled(Exception):
    """Raised within a job, at its next report, once someone has cancelled it."""


@dataclass
class Job:
    """One piece of work, and how far it is.

    Attributes:
        key: what it works on; at most one unfinished job of a kind has the same.
        finished: completes with the result, or with the ForgeError that ended the job.
    """

    kind: JobKind
    key: str
    job_id: str = field(default_factory=lambda: f"job_{secrets.token_hex(8)}")
    status: JobStatus = "queued"
    progress: float = 0.0
    message: str = ""
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    created_at: str = field(default_factory=iso_utc)
    finished: Future[dict[str, Any]] = field(default_factory=Future)
    cancelled: threading.Event = field(default_factory=threading.Event)
    _stop: Callable[[], None] = lambda: None
    _on_change: Callable[[Job], None] = lambda job: None
    _reported: float = 0.0

    def report(self, progress: float, message: str) -> None:
        """Show how far the work is, from 0 to 1. Raises JobCancelled."""
        if self.cancelled.is_set():
            raise JobCancelled
        self.progress, self.message = min(1.0, max(0.0, progress)), message
        if time.monotonic() - self._reported >= _REPORT_SECONDS:
            self._reported = time.monotonic()
            self._on_change(self)

    def stop_with(self, stop: Callable[[], None]) -> None:
        """Let `stop` be called, from another thread, when the job is cancelled."""
        self._stop = stop
        if self.cancelled.is_set():
            stop()

    def item(self) -> JobItem:
        """The job as the API shows it."""
        return JobItem(
            job_id=self.job_id,
            kind=self.kind,
            status=self.status,
            progress=round(self.progress, 4),
            message=self.message,
            result=self.result,
            error=self.error,
            created_at=self.created_at,
        )


Work = Callable[[Job], dict[str, Any]]


class JobRunner:
    """Runs jobs, keeps the last ones, and tells `listeners` of every change.

    Listeners are called from the job's thread and must return quickly.
    """

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self._jobs: dict[str, Job] = {}
        self._lanes: dict[Lane, SimpleQueue[tuple[Job, Work]]] = {}
        self._lock = threading.Lock()

    def submit(self, kind: JobKind, key: str, work: Work, lane: Lane) -> Job:
        """Line `work` up; the job that is already at the same thing is returned instead.

        Raises Unavailable when too many wait.
        """
        with self._lock:
            unfinished = [job for job in self._jobs.values() if job.status not in _ENDED]
            for job in unfinished:
                if (job.kind, job.key) == (kind, key) and not job.cancelled.is_set():
                    return job
            if len(unfinished) >= MAX_WAITING:
                raise Unavailable(
                    f"{MAX_WAITING} jobs are waiting already", suggestion="Try again later."
                )
            job = Job(kind, key, _on_change=self._tell)
            self._jobs[job.job_id] = job
            self._forget_old()
            self._lane(lane).put((job, work))
        self._tell(job)
        return job

    def latest(self) -> list[Job]:
        """Newest first."""
        with self._lock:
            return list(self._jobs.values())[::-1]

    def get(self, job_id: str) -> Job:
        """Raises NotFound."""
        with self._lock:
            if job := self._jobs.get(job_id):
                return job
        raise NotFound("Job not found", suggestion="GET /api/jobs lists those that are kept.")

    def cancel(self, job_id: str) -> Job:
        """Ask a job to end; one that runs ends at its next step. Raises NotFound, Conflict."""
        job = self.get(job_id)
        if job.status in _ENDED:
            raise Conflict(f"The job has {_IN_WORDS[job.status]}", details={"job_id": job_id})
        self._cancel(job)
        return job

    def close(self) -> None:
        """Cancel everything. Child processes are ended; threads end with the process."""
        for job in self.latest():
            if job.status not in _ENDED:
                self._cancel(job)

    def _cancel(self, job: Job) -> None:
        job.cancelled.set()
        with self._lock:
            waits = job.status == "queued"
            if waits:
                job.status = "cancelled"
        if waits:
            self._end(job, "cancelled", Conflict("The job was cancelled"))
        else:
            job._stop()

    def _lane(self, lane: Lane) -> SimpleQueue[tuple[Job, Work]]:
        if lane not in self._lanes:
            self._lanes[lane] = SimpleQueue()
            thread = threading.Thread(
                target=self._work_off, args=(self._lanes[lane],), name=f"{lane} jobs", daemon=True
            )
            thread.start()
        return self._lanes[lane]

    def _work_off(self, lane: SimpleQueue[tuple[Job, Work]]) -> None:
        while True:
            job, work = lane.get()
            with self._lock:
                if job.status != "queued":
                    continue
                job.status = "running"
            self._tell(job)
            self._run(job, work)

    def _run(self, job: Job, work: Work) -> None:
        try:
            job.result = work(job)
        except JobCancelled:
            self._end(job, "cancelled", Conflict("The job was cancelled"))
        except Exception as error:
            if job.cancelled.is_set():  # what a job says of being ended is of no interest
                self._end(job, "cancelled", Conflict("The job was cancelled"))
            else:
                self._end(job, "failed", _named(error))
        else:
            job.progress = 1.0
            self._end(job, "completed", None)

    def _end(self, job: Job, status: JobStatus, error: ForgeError | None) -> None:
        if status == "failed" and error is not None:
            job.error = error.to_dict()
        job.message = error.message if error is not None else job.message
        job.status = status
        self._tell(job)
        if error is not None:
            job.finished.set_exception(error)
        else:
            job.finished.set_result(job.result or {})

    def _tell(self, job: Job) -> None:
        for listener in self.listeners:
            try:
                listener(job.item().model_dump())
            except Exception:
                _log.exception("a listener to jobs failed")

    def _forget_old(self) -> None:
        ended = [job.job_id for job in self._jobs.values() if job.status in _ENDED]
        for job_id in ended[: max(0, len(ended) - MAX_FINISHED)]:
            del self._jobs[job_id]


_IN_WORDS: Mapping[JobStatus, str] = {
    "completed": "completed",
    "failed": "failed",
    "cancelled": "been cancelled",
}


def _named(error: Exception) -> ForgeError:
    if isinstance(error, ForgeError):
        return error
    _log.error("a job failed", exc_info=error)
    return ForgeError("The job failed unexpectedly", suggestion="Look at the server's log.")
