"""`forgellm cli generate` on a real tiny model: one answer, a chat by pipe, a chat in a terminal."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from forgellm.atomic import write_json
from forgellm.cli.main import main
from forgellm.cli.terminal_text import clean
from forgellm.data.tokenizer import Tokenizer
from forgellm.engines.registry import load_generate_engine
from forgellm.engines.torch.train import TorchTrainEngine
from forgellm.generation.prompt import build_prompt
from forgellm.generation.session import Done, answer
from forgellm.paths import Workspace
from forgellm.runs.checkpoints import write_checkpoint
from forgellm.runs.store import create_run
from forgellm.schema.generation import Message, Sampling
from forgellm.schema.recipe import Recipe
from terminal import READY, Terminal
from tiny_model import build_tiny_model
from tiny_tokenizer import build_tiny_tokenizer

PROMPT = "What is the mill for?"
CONTEXT = 20_000
GREEDY = ["--temperature", "0", "--dtype", "float32", "--max-tokens", "12"]
TINY = ["--model", "tiny", *GREEDY]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    found = Workspace(tmp_path_factory.mktemp("workspace"))
    folder = build_tiny_tokenizer(found.base_models / "tiny")
    # This seed repeats itself for ever when greedy: an answer that only its limit ends.
    build_tiny_model(folder, vocab_size=400, seed=1, max_position_embeddings=CONTEXT)
    return found


@dataclass
class Reference:
    """What the library answers, to compare the command with."""

    folder: Path
    adapter: Path | None = None
    history: list[Message] = field(default_factory=list)

    def ask(self, prompt: str, *, is_base_model: bool | None = None, **sampling: Any) -> Done:
        tokenizer = Tokenizer.load(self.folder)
        engine = load_generate_engine(self.folder, self.adapter, dtype="float32")
        ids = build_prompt(tokenizer, prompt, self.history, is_base_model=is_base_model)
        settings = Sampling(**{"temperature": 0, "max_tokens": 12, **sampling})
        *_, done = answer(engine, tokenizer, ids, settings)
        assert isinstance(done, Done)
        assert done.response
        self.num_context_tokens = len(ids) + done.tokens_generated
        self.history.append(Message(role="user", content=prompt))
        self.history.append(Message(role="assistant", content=done.response))
        return done


@pytest.fixture
def reference(workspace: Workspace) -> Reference:
    return Reference(workspace.base_models / "tiny")


@dataclass
class Result:
    code: int
    out: str
    err: str


Generate = Callable[..., Result]


@pytest.fixture
def generate(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Generate:
    """The command in this process."""

    def run(*arguments: str | Path, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
        where = ["--workspace", str(workspace.root)]
        code = main(["cli", "generate", *where, *map(str, arguments)])
        return Result(code, *capsys.readouterr())

    return run


def test_answer_alone_is_on_standard_output(generate: Generate, reference: Reference) -> None:
    result = generate(*TINY, "--prompt", PROMPT)
    assert result.code == 0
    assert result.out == clean(reference.ask(PROMPT).response) + "\n"
    loading, figures = result.err.splitlines()
    assert loading == "Loading tiny ... torch on cpu, float32: asked for"
    assert figures.startswith("12 tokens, ")
    assert figures.endswith(" tok/s, cut at --max-tokens")


def test_prompt_can_come_from_a_pipe(generate: Generate, reference: Reference) -> None:
    result = generate(*TINY, "--prompt", "-", stdin=f"{PROMPT}\nAnd why? 🐢\n".encode())
    assert result.out == clean(reference.ask(f"{PROMPT}\nAnd why? 🐢").response) + "\n"


def test_prompt_that_is_not_utf8_is_refused(generate: Generate) -> None:
    result = generate(*TINY, "--prompt", "-", stdin=b"caf\xe9")
    assert (result.code, result.out) == (2, "")
    assert "The text of --prompt is not UTF-8" in result.err


def test_base_flag_leaves_the_chat_template_out(generate: Generate, reference: Reference) -> None:
    base, chat = reference.ask(PROMPT, is_base_model=True), Reference(reference.folder).ask(PROMPT)
    assert base.response != chat.response
    assert generate(*TINY, "--base", "--prompt", PROMPT).out == clean(base.response) + "\n"


def test_system_prompt_is_sent(generate: Generate, reference: Reference) -> None:
    reference.history.append(Message(role="system", content="Count the sacks."))
    result = generate(*TINY, "--system", "Count the sacks.", "--prompt", PROMPT)
    assert result.out == clean(reference.ask(PROMPT).response) + "\n"


def test_json_has_the_fields_of_the_model_server(generate: Generate, reference: Reference) -> None:
    found = json.loads(generate(*TINY, "--json", "--prompt", PROMPT).out)
    done = reference.ask(PROMPT)
    assert found.pop("generation_time_seconds") > 0
    assert found.pop("tokens_per_second") > 0
    assert found == {
        "success": True,
        "response": done.response,
        "tokens_generated": 12,
        "finish_reason": "length",
        "prompt_tokens": done.prompt_tokens,
        "context_length": done.context_length,
    }


def test_defaults_of_the_flags_are_those_of_the_api(
    generate: Generate, reference: Reference
) -> None:
    said = {"temperature": 0.7, "max_tokens": 200, **Sampling(seed=5).model_dump()}
    result = generate("--model", "tiny", "--dtype", "float32", "--seed", "5", "--prompt", PROMPT)
    assert result.out == clean(reference.ask(PROMPT, **said).response) + "\n"


def test_a_model_cannot_reach_the_terminal(generate: Generate, reference: Reference) -> None:
    wild = {"temperature": 10, "top_p": 1, "seed": 3, "max_tokens": 150}
    assert "\x1b" in reference.ask(PROMPT, **wild).response
    flags = ["--temperature", "10", "--top-p", "1", "--seed", "3", "--max-tokens", "150"]
    for end in (["--prompt", PROMPT], ["--prompt", PROMPT, "--json"]):
        shown = generate("--model", "tiny", "--dtype", "float32", *flags, *end).out
        assert {c for c in shown if ord(c) < 32 or 126 < ord(c) < 160} <= {"\n", "\t"}


@pytest.fixture(scope="module")
def run_folder(workspace: Workspace) -> Path:
    """A run of two checkpoints, of which the first is the better."""
    recipe = Recipe(model_name="tiny", dataset="mill", lora_rank=4, dtype="float32").resolved()
    run = create_run(workspace, recipe, 64)
    engine = TorchTrainEngine(recipe, workspace.base_models / "tiny")
    write_json(run.folder / "adapter_config.json", engine.adapter_config() or {})
    for iteration, loss in ((100, 1.0), (200, 2.0)):
        torch.manual_seed(iteration)
        with torch.no_grad():
            for name, parameter in engine.model.named_parameters():
                if "lora_" in name:
                    parameter.add_(torch.randn_like(parameter))
        write_checkpoint(
            run.folder, iteration, loss, engine.save_weights, engine.save_optimizer, {}
        )
    return run.folder


def test_a_run_stands_for_its_best_checkpoint_on_its_own_base_model(
    generate: Generate, reference: Reference, run_folder: Path
) -> None:
    result = generate(
        *GREEDY, "--adapter-path", f"models/cpt/{run_folder.name}", "--prompt", PROMPT
    )
    reference.adapter = run_folder / "0000100_adapters.safetensors"
    best = reference.ask(PROMPT).response
    assert result.out == clean(best) + "\n"
    assert result.err.startswith("Loading tiny with 0000100_adapters.safetensors ... ")
    assert best != Reference(reference.folder).ask(PROMPT).response


@pytest.mark.parametrize("style", ["absolute", "current folder"])
def test_paths_outside_the_workspace_may_be_typed(
    style: str,
    generate: Generate,
    reference: Reference,
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference.adapter = run_folder / "0000200_adapters.safetensors"
    expected = clean(reference.ask(PROMPT).response) + "\n"
    monkeypatch.chdir(run_folder.parent)
    model, adapter = reference.folder, run_folder / "0000200_adapters.safetensors"
    if style == "current folder":
        model, adapter = Path(os.path.relpath(model)), Path(os.path.relpath(adapter))
    elsewhere = ["--workspace", tmp_path, "--model", model, "--adapter-path", adapter]
    assert generate(*GREEDY, *elsewhere, "--prompt", PROMPT).out == expected


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "nowhere"], 1, "MODEL_NOT_FOUND"),
        (["--model", "tiny", "--adapter-path", "nowhere"], 1, "CHECKPOINT_NOT_FOUND"),
        (["--adapter-path", "models/base/tiny"], 1, "CHECKPOINT_NOT_FOUND"),
        ([], 2, "--model is missing"),
        (["--model", "tiny", "--json"], 2, "--json needs --prompt"),
        (["--model", "tiny", "--temperature", "-1"], 2, "temperature: "),
        (["--model", "tiny", "--base", "--prompt", ""], 2, "The prompt is empty"),
    ],
)
def test_what_cannot_work_is_said(
    arguments: list[str], code: int, message: str, generate: Generate
) -> None:
    result = generate(*arguments)
    assert (result.code, result.out) == (code, "")
    (failure,) = (line for line in result.err.splitlines() if line.startswith("forgellm: "))
    assert message in failure


def test_chat_by_pipe_sends_the_history(generate: Generate, reference: Reference) -> None:
    typed = f"{PROMPT}\n\nWhy do you \\\ncount?\n/stats\n"
    result = generate(*TINY, stdin=typed.encode())
    first, second = reference.ask(PROMPT), reference.ask("Why do you \ncount?")
    assert result.out == f"{clean(first.response)}\n{clean(second.response)}\n"
    assert "Answers: 2\nGenerated: 24 tokens in " in result.err
    assert f"Conversation: {reference.num_context_tokens} of {CONTEXT} tokens" in result.err


def test_clear_forgets_the_turns_and_keeps_the_system_prompt(
    generate: Generate, reference: Reference
) -> None:
    typed = f"{PROMPT}\n/clear\n/system\n/system Be brief. \n/system\n{PROMPT}\n"
    result = generate(*TINY, stdin=typed.encode())
    first = reference.ask(PROMPT).response
    reference.history = [Message(role="system", content="Be brief.")]
    assert result.out == f"{clean(first)}\n{clean(reference.ask(PROMPT).response)}\n"
    assert "No system prompt\nSystem prompt: Be brief.\nSystem prompt: Be brief.\n" in result.err


def test_quitting_leaves_and_unknown_commands_do_not(
    generate: Generate, reference: Reference
) -> None:
    for leave in ("/q", "/exit"):
        typed = f"/nonsense\n/help\n /q is text here\n{leave}\n{PROMPT}\n"
        result = generate(*TINY, stdin=typed.encode())
        reference.history.clear()
        assert result.code == 0
        assert result.out == clean(reference.ask(" /q is text here").response) + "\n"
        assert "/nonsense is not a command" in result.err
        assert all(command in result.err for command in ("/stats", "/system", "/clear", "/exit"))


def test_a_prompt_that_does_not_fit_leaves_the_chat_alive(
    generate: Generate, reference: Reference
) -> None:
    typed = f"{'mill ' * CONTEXT}\n{PROMPT}\n"
    result = generate(*TINY, stdin=typed.encode())
    assert result.out == clean(reference.ask(PROMPT).response) + "\n"
    assert f"the model's context holds {CONTEXT}" in result.err


def test_bytes_that_are_no_text_do_not_end_the_chat(generate: Generate) -> None:
    assert generate(*TINY, stdin=b"caf\xe9\n/stats\n").err.count("Answers: 1") == 1


def command(workspace: Workspace, *arguments: str) -> list[str]:
    flags = ["--workspace", str(workspace.root), *TINY, "--repetition-penalty", "1", *arguments]
    return [sys.executable, "-m", "forgellm", "cli", "generate", *flags]


def test_a_reader_that_goes_away_ends_the_answer_quietly(workspace: Workspace) -> None:
    process = subprocess.Popen(
        command(workspace, "--prompt", PROMPT, "--max-tokens", str(CONTEXT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(3)
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 141
    assert errors.startswith("Loading tiny ...")
    assert len(errors.splitlines()) == 1


def test_interrupt_ends_a_single_answer(workspace: Workspace) -> None:
    process = subprocess.Popen(
        command(workspace, "--prompt", PROMPT, "--max-tokens", str(CONTEXT)),
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdout.read(3)
    process.send_signal(signal.SIGINT)
    assert process.stdout.read().endswith("\n")
    process.stdout.close()
    assert process.wait() == 130


@pytest.fixture
def terminal(workspace: Workspace, tmp_path: Path) -> Iterator[Terminal]:
    found = Terminal(command(workspace, "--max-tokens", str(CONTEXT)), tmp_path)
    try:
        found.wait_for(READY)
        yield found
    finally:
        found.close()


def test_chat_in_a_terminal(terminal: Terminal, reference: Reference, tmp_path: Path) -> None:
    terminal.type(f"{PROMPT}\r")
    begin = clean(reference.ask(PROMPT, repetition_penalty=1).response)
    terminal.wait_for(begin.replace("\n", "\r\n"))
    terminal.type("\x03")
    terminal.wait_for("(stopped)")
    terminal.wait_for(READY)
    terminal.type("half a thought\x03")
    terminal.wait_for(READY)
    terminal.type("/stats\r")
    terminal.wait_for("Answers: 1")
    terminal.wait_for(READY)
    terminal.type("/none\x1b\rsuch\\\rthing\r")
    terminal.wait_for("/none is not a command")
    terminal.wait_for(READY)
    terminal.type("\x04")
    assert terminal.process.wait(30) == 0

    history = tmp_path / "forgellm" / "history"
    assert history.stat().st_mode & 0o777 == 0o600
    kept = [line for line in history.read_text().splitlines() if line.startswith("+")]
    assert kept == [f"+{PROMPT}", "+/stats", "+/none", "+such", "+thing"]
