#!/usr/bin/env bash
# Run on a Mac: prints the tables of ForgeLLM against mlx_lm.lora and mlx_lm.generate.
#
#   bash benchmarks/apple.sh [MODEL ...]     hub ids or folders; several are measured in turn
#
# Makes an environment of its own in .venv-bench, fetches the models from the Hugging Face hub, and
# appends what it prints to benchmarks/apple-results.md. Extra options for the measurement go into
# BENCH, such as BENCH="--seq-len 4096 --rounds 5". Not run on a Mac so far; on Linux it runs on
# mlx[cpu], where its figures mean nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
models=("$@")
if [ ${#models[@]} -eq 0 ]; then
  models=(mlx-community/Qwen3-0.6B-bf16 mlx-community/Qwen3-4B-4bit)
fi
if [ ! -x .venv-bench/bin/python ]; then
  python3 -m venv .venv-bench
  .venv-bench/bin/python -m pip install --quiet '.[mlx]'
fi
python=.venv-bench/bin/python
errors=$(mktemp)
for model in "${models[@]}"; do
  folder=$model
  if [ ! -d "$model" ]; then
    folder=$($python -c 'import sys, huggingface_hub as hub; print(hub.snapshot_download(sys.argv[1]))' "$model")
  fi
  for checkpointing in "" --grad-checkpoint; do
    # shellcheck disable=SC2086
    $python benchmarks/mlx_lm_peer.py "$folder" ${BENCH:-} $checkpointing 2>"$errors" |
      tee -a benchmarks/apple-results.md || { cat "$errors" >&2; exit 1; }
  done
done
sysctl -n machdep.cpu.brand_string hw.memsize 2>/dev/null | tee -a benchmarks/apple-results.md || true
