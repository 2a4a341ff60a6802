"""The publishing process: `python -m forgellm.publishing RUN_FOLDER ITERATION`.

It says on standard output what it does, a JSON object a line, and last its result or its error.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import orjson

from forgellm.errors import ForgeError, OutOfMemory
from forgellm.paths import find_workspace
from forgellm.publishing.build import build_published
from forgellm.runs.checkpoints import find_checkpoint
from forgellm.runs.store import open_run

_NICENESS = 10


def main() -> int:
    os.nice(_NICENESS)  # a run that trains meanwhile matters more
    # What libraries print must not get between our lines.
    lines, sys.stdout = sys.stdout, sys.stderr

    def say(item: dict[str, object]) -> None:
        print(orjson.dumps(item).decode(), file=lines, flush=True)

    # Leaves by an exception, so that the unfinished folder is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    run = open_run(find_workspace(), Path(sys.argv[1]))
    try:
        published = build_published(
            run,
            find_checkpoint(run.folder, int(sys.argv[2])),
            lambda fraction, text: say({"progress": fraction, "message": text}),
        )
    except ForgeError as error:
        say({"error": error.to_dict()})
        return error.exit_code
    except MemoryError:
        say({"error": OutOfMemory("The machine ran out of memory").to_dict()})
        return 1
    say({"published": asdict(published)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
