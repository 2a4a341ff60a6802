PYTHON ?= python3
BIN := .venv/bin
WORKSPACE ?= workspace
BENCH_MODEL ?= $(WORKSPACE)/models/base/SmolLM2-135M-Instruct
BENCHMARKS ?= training generation tokenising mlx_lm_peer memory_estimate scaling

.PHONY: setup demo test test-full test-browser lint lint-page docs screenshots bench clean

setup: .venv/.ready  ## make .venv with everything for development

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ForgeLLM needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt -e '.[dev]'
	touch $@

demo: setup  ## teach the shipped model the shipped handbook
	$(BIN)/forgellm demo --workspace $(WORKSPACE) $(ARGS)

test: setup lint  ## the default suite
# nice: processes that the tests start step back by 10, and would starve beside the tests
	nice -n 19 $(BIN)/pytest -q -n 2

test-full: setup lint  ## with the slow tests: real model, minutes of CPU
	$(BIN)/pytest -q -m 'not gpu and not browser'

lint: setup  ## style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lint-page: tests/browser/node_modules  ## types of the web page's scripts; needs npm
	cd tests/browser && npx --no-install tsc -p jsconfig.json

test-browser: setup lint-page  ## the web page in Chromium; needs it, and npm
	$(BIN)/pytest -q -m browser

tests/browser/node_modules: tests/browser/package-lock.json
	cd tests/browser && npm ci --silent --no-audit --no-fund
	touch $@

screenshots: setup  ## pictures of every view of the demo's workspace; needs Chromium
	$(BIN)/python scripts/screenshots.py --workspace $(WORKSPACE) $(ARGS)

bench: setup .venv-bench/.ready  ## ours beside its peers, as tables; hours on two cores, ROUNDS=1 a third of it
	test -d $(BENCH_MODEL) || $(BIN)/python -c 'from pathlib import Path; from forgellm.demo.model import demo_model; from forgellm.paths import Workspace; demo_model(Workspace(Path("$(WORKSPACE)")), print)'
	for type in BF16 Q8_0 Q4_0; do ls $(dir $(BENCH_MODEL))../exported/$(notdir $(BENCH_MODEL))-gguf-*/*-$$type.gguf >/dev/null 2>&1 || $(BIN)/forgellm models --workspace $(WORKSPACE) export --format gguf --type $$type $(notdir $(BENCH_MODEL)) || exit 1; done
	for bits in 8 4; do ls -d $(dir $(BENCH_MODEL))../published/$(notdir $(BENCH_MODEL))-$${bits}bit-g64 >/dev/null 2>&1 || $(BIN)/forgellm models --workspace $(WORKSPACE) quantize --bits $$bits $(notdir $(BENCH_MODEL)) || exit 1; done
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py $(BENCH_MODEL) || exit 1; done
	$(BIN)/python benchmarks/serving.py

.venv-bench/.ready: benchmarks/peers.txt constraints.txt
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet -c constraints.txt -r benchmarks/peers.txt
	touch $@

docs: setup  ## fill the generated parts of docs/
	$(BIN)/python scripts/write_docs.py

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
