"""llama.cpp in a process of its own: `answers(file, requests)`, each a body of its completion route."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def answers(
    file: Path, requests: list[dict[str, Any]], context: int = 256, lora: Path | None = None
) -> list[dict[str, Any]]:
    """What llama.cpp says to each request, with its own tokens in `tokens`."""
    adapters = [] if lora is None else [str(lora)]
    done = subprocess.run(
        [sys.executable, __file__, str(file), str(context), *adapters],
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def _main() -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.n_ctx = int(sys.argv[2])
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in sys.argv[3:]]
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.warmup = False
    params.cpuparams.n_threads = 2
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.use_jinja = True
    server = xllamacpp.Server(params)
    found = []
    for request in json.load(sys.stdin):
        is_chat = "messages" in request
        handle = server.handle_chat_completions if is_chat else server.handle_completions
        found.append(handle(request))
    print("\n" + json.dumps(found), flush=True)


if __name__ == "__main__":
    _main()
