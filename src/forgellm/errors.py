"""Every failure that a user can cause or meet, as one tree.

    ForgeError                         exit 1   catch this for anything ForgeLLM raises on purpose
    + InvalidRequest             400   exit 2   the request, flag or file the user gave cannot work
    |   + ConfigError                           one or more fields of a recipe, all named at once
    |   + DataError                             the dataset yields nothing to train on
    |   + UnsupportedModel                      the model's files cannot be used safely or at all
    |   + DoesNotFit                            estimated or measured memory exceeds the machine
    |   + DiskTooSmall                          the checkpoints would not fit on the disk
    + NotFound                   404
    |   + ModelNotFound  DatasetNotFound  RunNotFound  CheckpointNotFound  PathNotFound
    + Conflict                   409
    |   + TrainingAlreadyRunning  NoActiveTraining  ModelNotLoaded  RunBusy
    |   + ModelChanged  RunEdited
    + Unavailable                503
    |   + ModelServerUnavailable  EngineUnavailable  HubUnavailable  PortInUse (exit 3)
    + TrainingFailed             500            raised in the trainer, kept in the run's state
        + OutOfMemory  NonFiniteLoss  WorkerDied (PeerLost, PeerSilent)  DiskFull  CheckpointCorrupt

Only `envelope.py` turns these into HTTP replies and only `cli/` into exit codes.
`details` must be JSON-safe and must not hold absolute paths or secrets.
"""

from __future__ import annotations

from typing import Any, ClassVar


class ForgeError(Exception):
    """A failure with a name, a sentence for the user, and what they can do about it."""

    code: ClassVar[str] = "INTERNAL_ERROR"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    default_suggestion: ClassVar[str] = ""

    def __init__(
        self, message: str, *, suggestion: str = "", details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.suggestion = suggestion or self.default_suggestion
        self.details = details or {}

    def to_dict(self) -> dict[str, Any]:
        """The spec's error envelope."""
        return {
            "success": False,
            "error": self.message,
            "error_code": self.code,
            "details": self.details,
            "suggestion": self.suggestion,
        }


class InvalidRequest(ForgeError):
    code = "INVALID_REQUEST"
    status = 400
    exit_code = 2


class ConfigError(InvalidRequest):
    """One or more fields are wrong; `details["problems"]` lists `{"field", "message"}`."""

    code = "INVALID_CONFIG"

    def __init__(self, problems: list[dict[str, str]], *, suggestion: str = "") -> None:
        text = "; ".join(f"{p['field']}: {p['message']}" for p in problems)
        super().__init__(text, suggestion=suggestion, details={"problems": problems})

    @classmethod
    def one(cls, field: str, message: str, *, suggestion: str = "") -> ConfigError:
        return cls([{"field": field, "message": message}], suggestion=suggestion)


class DataError(InvalidRequest):
    code = "DATASET_UNUSABLE"


class UnsupportedModel(InvalidRequest):
    code = "MODEL_UNSUPPORTED"


class DoesNotFit(InvalidRequest):
    code = "MEMORY_TOO_SMALL"
    default_suggestion = "Use a smaller batch_size or max_seq_length, or turn grad_checkpoint on."


class DiskTooSmall(InvalidRequest):
    code = "DISK_TOO_SMALL"
    default_suggestion = "Free disk space, or lower max_checkpoints."


class NotFound(ForgeError):
    code = "NOT_FOUND"
    status = 404


class ModelNotFound(NotFound):
    code = "MODEL_NOT_FOUND"

    def __init__(self, model_name: str, searched: list[str], *, suggestion: str = "") -> None:
        super().__init__(
            "Model not found",
            suggestion=suggestion or f"Download it with: forgellm models pull {model_name}",
            details={"model_name": model_name, "searched_paths": searched},
        )


class DatasetNotFound(NotFound):
    code = "DATASET_NOT_FOUND"


class RunNotFound(NotFound):
    code = "RUN_NOT_FOUND"


class CheckpointNotFound(NotFound):
    code = "CHECKPOINT_NOT_FOUND"


class PathNotFound(NotFound):
    """Absent and forbidden paths look the same, so that no reply reveals what exists outside."""

    code = "PATH_NOT_FOUND"


class Conflict(ForgeError):
    code = "CONFLICT"
    status = 409


class ModelChanged(Conflict):
    """`details["changed"]` says of each file what became of it."""

    code = "MODEL_CHANGED"
    default_suggestion = (
        "Restore the model as it was, or go on with it as it is: --allow-changed-base, in a request "
        '"allow_changed_base": true.'
    )


class RunEdited(Conflict):
    """`details` have in `fields` those of `run.json` that are not as they were written, or in `files`
    those beside it."""

    code = "RUN_EDITED"


class TrainingAlreadyRunning(Conflict):
    code = "TRAINING_ALREADY_RUNNING"
    default_suggestion = 'Stop it first, or send "queue": true to run after it.'


class NoActiveTraining(Conflict):
    code = "NO_ACTIVE_TRAINING"


class ModelNotLoaded(Conflict):
    code = "MODEL_NOT_LOADED"
    default_suggestion = "Load a model first: POST /api/model/load"


class RunBusy(Conflict):
    """Another process holds the run's lock."""

    code = "RUN_BUSY"


class Unavailable(ForgeError):
    code = "UNAVAILABLE"
    status = 503


class ModelServerUnavailable(Unavailable):
    code = "MODEL_SERVER_UNAVAILABLE"
    default_suggestion = "Start it with: forgellm server (or both servers: forgellm start)"


class EngineUnavailable(Unavailable):
    code = "ENGINE_UNAVAILABLE"


class HubUnavailable(Unavailable):
    code = "HUB_UNAVAILABLE"


class PortInUse(Unavailable):
    code = "PORT_IN_USE"
    exit_code = 3


class TrainingFailed(ForgeError):
    code = "TRAINING_FAILED"


class OutOfMemory(TrainingFailed):
    code = "OUT_OF_MEMORY"
    default_suggestion = "Use a smaller batch_size or max_seq_length, or turn grad_checkpoint on."


class NonFiniteLoss(TrainingFailed):
    code = "NON_FINITE_LOSS"
    default_suggestion = (
        "Lower learning_rate, or raise warmup_steps; resume from the last checkpoint."
    )


class WorkerDied(TrainingFailed):
    code = "WORKER_DIED"
    default_suggestion = "Resume the run: it continues from its last good checkpoint."


class PeerLost(WorkerDied):
    """One of several processes waited in vain for another; who starts them says what became of it."""

    code = "PEER_LOST"
    exit_code = 75


class PeerSilent(PeerLost):
    """As PeerLost, without a sign that the other had ended: it hangs, or its machine is cut off."""

    code = "PEER_SILENT"
    exit_code = 76


class DiskFull(TrainingFailed):
    code = "DISK_FULL"
    default_suggestion = "Free disk space, then resume: the earlier checkpoints are intact."


class CheckpointCorrupt(TrainingFailed):
    code = "CHECKPOINT_CORRUPT"
    default_suggestion = "Use an earlier checkpoint of this run."
