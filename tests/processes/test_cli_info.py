"""`forgellm cli info`, the listings, completion, and the commands of the chat that change models."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from forgellm import supervisor
from forgellm.cli.info import short_count
from forgellm.cli.main import all_parsers, main
from forgellm.cli.repl import _history
from forgellm.errors import ModelNotFound
from forgellm.paths import Workspace
from forgellm.runs.store import Run, active_run, list_runs
from forgellm.training.session import Session
from serving import PATIENCE_SECONDS, eventually
from spec_lines import SPEC, lines_of_the_spec, needs_spec
from tiny_workspace import build_tiny_workspace, tiny_recipe

Command = Callable[..., "Result"]


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


def train(workspace: Workspace, **fields: object) -> Run:
    run, lock = supervisor.claim_new_run(workspace, tiny_recipe(**fields), max_seq_length=64)
    with lock:
        Session().train(run, resume=False)
    return run


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return build_tiny_workspace(tmp_path_factory.mktemp("workspace"), seed=1)


@pytest.fixture(scope="module")
def lora(workspace: Workspace) -> Run:
    return train(workspace, lora_alpha=10, lora_target="attention")


@pytest.fixture
def forgellm(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """The command in this process, in the workspace."""
    monkeypatch.chdir(workspace.root)

    def run(*arguments: str, stdin: str = "") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), "utf-8"))
        code = main(arguments)
        return Result(code, *capsys.readouterr())

    return run


def test_info_has_the_layout_of_the_spec(forgellm: Command, lora: Run) -> None:
    result = forgellm("cli", "info", "--model", "tiny", "--adapter-path", lora.output_dir)
    assert result.code == 0
    assert result.out == (
        "Model Information:\n"
        "  Name: tiny\n"
        "  Type: Instruct Model\n"
        "  Architecture: Llama\n"
        "  Parameters: ~31K\n"
        "  Quantization: fp32\n"
        "  Context Length: 512 tokens\n"
        "\n"
        "Adapter Information:\n"
        f"  Path: {lora.output_dir}\n"
        "  Type: LoRA Adapter\n"
        "  Rank: 4\n"
        "  Alpha: 10\n"
        "  Target Modules: k_proj, o_proj, q_proj, v_proj\n"
    )
    if SPEC.is_file():
        wanted = SPEC.read_text().split("**Output:**\n```\n")[1].split("```")[0]
        labels = [line.split(":")[0].rstrip() for line in wanted.splitlines()]
        assert [line.split(":")[0] for line in result.out.splitlines()] == labels


def test_info_as_json_counts_exactly(forgellm: Command, workspace: Workspace, lora: Run) -> None:
    found = json.loads(forgellm("cli", "info", "--adapter-path", lora.output_dir, "--json").out)
    assert found["success"] is True
    assert found["model"]["name"] == "tiny"
    assert found["model"]["num_parameters"] == _num_parameters(workspace)
    assert found["adapter"] == {
        "path": lora.output_dir,
        "type": "lora",
        "rank": 4,
        "alpha": 10.0,
        "target_modules": ["k_proj", "o_proj", "q_proj", "v_proj"],
    }


def _num_parameters(workspace: Workspace) -> int:
    import transformers

    folder = workspace.base_models / "tiny"
    return int(transformers.AutoModelForCausalLM.from_pretrained(folder).num_parameters())


def test_info_tells_dora_and_full_checkpoints_apart(
    forgellm: Command, workspace: Workspace
) -> None:
    for kind, shown in (("dora", "DoRA Adapter"), ("full", "Full Checkpoint")):
        run = train(workspace, fine_tune_type=kind, max_iterations=4)
        out = forgellm("cli", "info", "--model", "tiny", "--adapter-path", run.output_dir).out
        assert f"  Type: {shown}\n" in out


def test_info_imports_no_engine(workspace: Workspace) -> None:
    code = (
        "import sys; from forgellm.cli.main import main;"
        f"main(['cli', 'info', '--model', 'tiny', '--workspace', {str(workspace.root)!r}]);"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("count", "shown"),
    [(134_515_008, "135M"), (4_022_468_096, "4B"), (1_543_714_304, "1.5B"), (999_900_000, "1B"),
     (30_912, "31K"), (999, "999"), (596_049_920, "596M"), (70_553_706_496, "71B")],
)  # fmt: skip
def test_counts_are_shown_as_model_names_have_them(count: int, shown: str) -> None:
    assert short_count(count) == shown


def test_a_model_that_is_not_there_says_where_we_looked(forgellm: Command) -> None:
    result = forgellm("cli", "info", "--model", "no\x1b[2Jbody")
    assert (result.code, result.out) == (1, "")
    assert "MODEL_NOT_FOUND" in result.err
    (searched,) = (line for line in result.err.splitlines() if line.startswith("  Searched: "))
    assert "models/base/" in searched
    assert "\x1b" not in result.err


def test_error_messages_cannot_reach_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: object) -> int:
        raise ModelNotFound("a\x1b]52;c;cm0=\x07b", ["x\x9b2J"])

    monkeypatch.setattr("forgellm.cli.info.run", fail)
    assert main(["cli", "info", "--model", "x"]) == 1
    assert not {"\x1b", "\x9b", "\x07"} & set(capsys.readouterr().err)


def test_listings_as_json_describe_what_is_there(
    forgellm: Command, workspace: Workspace, lora: Run
) -> None:
    runs = json.loads(forgellm("runs", "list", "--json").out)
    assert {run["name"] for run in runs} == {run.name for run in list_runs(workspace)}
    (found,) = (run for run in runs if run["name"] == lora.name)
    assert (found["phase"], found["current_iteration"]) == ("completed", 12)
    shown = json.loads(forgellm("runs", "show", lora.name, "--json").out)
    assert shown["run"] == found
    assert {item["iteration"] for item in shown["checkpoints"]} == {4, 8, 12}
    (notes,) = json.loads(forgellm("data", "list", "--json").out)
    assert (notes["name"], notes["file_count"]) == ("notes", 24)
    assert notes["estimated_tokens"] > 24 * 60
    assert "base/tiny" in [m["path"] for m in json.loads(forgellm("models", "list", "--json").out)]


def test_listings_for_people_name_everything(forgellm: Command, lora: Run) -> None:
    assert re.search(f"^{lora.name} +completed +12/12 ", forgellm("runs", "list").out, re.M)
    assert "notes" in forgellm("data", "list").out
    shown = forgellm("runs", "show", lora.name).out
    assert f"{lora.output_dir}/0000012_adapters.safetensors" in shown


def test_empty_workspace_has_empty_listings(tmp_path: Path, forgellm: Command) -> None:
    for command in ("runs", "data"):
        arguments = (command, "--workspace", str(tmp_path), "list")
        assert json.loads(forgellm(*arguments, "--json").out) == []
        assert forgellm(*arguments).code == 0


def test_run_is_resumed_in_the_background_stopped_and_deleted(
    forgellm: Command, tmp_path: Path
) -> None:
    workspace = build_tiny_workspace(tmp_path)
    session = Session()
    run, lock = supervisor.claim_new_run(
        workspace, tiny_recipe(max_iterations=1_000_000), max_seq_length=64
    )
    session.observer = lambda line, state: setattr(session, "stop", line.iteration >= 6)
    with lock:
        session.train(run, resume=False)
    where = ("runs", "--workspace", str(workspace.root))
    assert forgellm(*where, "resume", run.name).code == 0
    try:
        eventually(lambda: run.state().iteration > 12)
    finally:
        stopped = forgellm(*where, "stop")
    assert stopped.code == 0 and run.name in stopped.out
    assert run.state().phase == "stopped" and active_run(workspace) is None
    assert forgellm(*where, "stop").code == 1
    assert forgellm(*where, "delete", run.name, stdin="n\n").code == 1
    assert forgellm(*where, "delete", run.name, stdin="y\n").code == 0
    assert list_runs(workspace) == []
    assert (workspace.models / ".trash" / run.name / "run.json").is_file()


def test_completion_in_bash_knows_commands_flags_and_values(forgellm: Command) -> None:
    script = forgellm("completion", "bash").out

    def completed(*words: str) -> list[str]:
        line = " ".join(map(shlex.quote, words))
        ask = (
            f'COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _forgellm; echo "${{COMPREPLY[@]}}"'
        )
        done = subprocess.run(["bash", "-c", script + ask], capture_output=True, text=True)
        assert done.stderr == ""
        return done.stdout.split()

    assert {"train", "cli", "runs", "completion", "--version"} <= set(completed("forgellm", ""))
    assert completed("forgellm", "cli", "in") == ["info"]
    assert completed("forgellm", "cli", "info", "--a") == ["--adapter-path"]
    assert completed("forgellm", "train", "--lr-schedule", "co") == ["cosine", "constant"]
    assert completed("forgellm", "runs", "--workspace", "/tmp", "sh") == ["show"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_names_every_command(shell: str, forgellm: Command) -> None:
    script = forgellm("completion", shell).out
    for action in all_parsers()._actions:
        for name in action.choices or ():
            assert re.search(rf"\b{name}\b", script)


@needs_spec
def test_every_command_line_of_the_spec_parses() -> None:
    parser, lines = all_parsers(), list(lines_of_the_spec())
    assert len(lines) >= 9
    for line in lines:
        assert callable(parser.parse_args(line).run)


# Every command that the spec lists, and what the chat says to each in turn.
TYPED = "/help\n/system Be brief.\n/system\nHello\n/stats\n/clear\n/exit\n"
HEARD = "/clear.*/exit.*System prompt: Be brief.\nSystem prompt: Be brief.\n.*Answers: 1"


@needs_spec
def test_every_cli_line_of_the_spec_runs(forgellm: Command, lora: Run) -> None:
    for line in lines_of_the_spec():
        if line[0] != "cli":
            continue
        names = {"mlx-community/Qwen3-4B-bf16": "tiny", "models/cpt/my_model": lora.output_dir}
        is_chat = line[1] == "generate" and "--prompt" not in line
        result = forgellm(*(names.get(word, word) for word in line), stdin=TYPED if is_chat else "")
        assert result.code == 0, result.err
        assert result.out
        if is_chat:
            assert re.search(HEARD, result.err, re.DOTALL), result.err


CHAT = ("cli", "generate", "--model", "tiny", "--temperature", "0", "--max-tokens", "24")


def test_conversation_is_saved_and_goes_on_where_it_was(forgellm: Command, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    said = forgellm(*CHAT, stdin=f"/system Be brief.\nHello\n/save {file}\nAnd then?\n").out
    saved = json.loads(file.read_text())
    assert saved["metadata"]["model_name"] == "tiny"
    assert [message["role"] for message in saved["messages"]] == ["system", "user", "assistant"]
    again = forgellm(*CHAT, stdin=f"/load {file}\nAnd then?\n").out
    assert said.endswith(again)
    assert again.strip()


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"\xff", b'{"messages": 3}', b'{"messages": [{"role": "root"}]}']
)
def test_what_is_no_conversation_leaves_the_chat_as_it_was(
    content: bytes, forgellm: Command, tmp_path: Path
) -> None:
    file = tmp_path / "chat.json"
    file.write_bytes(content)
    result = forgellm(
        *CHAT, stdin=f"/system Stay.\n/load {file}\n/load {tmp_path}\n/load\n/system\n"
    )
    assert result.code == 0
    assert "is not a saved conversation" in result.err
    assert "cannot be read" in result.err
    assert result.err.endswith("System prompt: Stay.\n")


def test_conversation_that_cannot_be_saved_leaves_the_chat_alive(
    forgellm: Command, tmp_path: Path
) -> None:
    result = forgellm(*CHAT, stdin=f"/save {tmp_path}\n/save {tmp_path}/no/where\n/save\n/stats\n")
    assert result.code == 0
    assert "could not be written" in result.err
    assert "There is no folder" in result.err
    assert "/save needs the name of a file" in result.err
    assert "Answers: 0" in result.err


def test_adapter_and_model_change_in_the_chat(forgellm: Command, lora: Run) -> None:
    plain = forgellm(*CHAT, "--prompt", "tide").out
    taught = forgellm(*CHAT, "--adapter-path", lora.output_dir, "--prompt", "tide").out
    assert plain != taught
    typed = (
        f"/adapter {lora.output_dir}\ntide\n/clear\n/adapter none\ntide\n/clear\n/model nix\ntide\n"
    )
    result = forgellm(*CHAT, stdin=typed)
    assert result.out == taught + plain + plain
    assert f"Adapter: {lora.output_dir}\n" in result.err
    assert "Model not found." in result.err
    result = forgellm(*CHAT, "--adapter-path", lora.output_dir, stdin="/model base/tiny\ntide\n")
    assert result.out == plain
    assert "Model: base/tiny\n" in result.err


def run_outside(
    workspace: Workspace, script: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A shell line; `$chat` is the chat's command."""
    chat = shlex.join([sys.executable, "-m", "forgellm", *CHAT])
    return subprocess.run(
        ["bash", "-c", f"{script.replace('$chat', chat)}"],
        cwd=workspace.root,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS * 2,
    )


def test_closed_standard_input_ends_the_chat_quietly(workspace: Workspace) -> None:
    done = run_outside(workspace, "$chat <&-")
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    done = run_outside(workspace, "$chat --prompt - <&-")
    assert done.returncode == 2
    assert "Standard input is closed" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_behind_standard_output_is_one_line(workspace: Workspace) -> None:
    done = run_outside(workspace, "$chat --prompt Hello > /dev/full")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and "No space left" in done.stderr


def test_history_that_cannot_be_written_does_not_end_the_chat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    history, file = _history(), tmp_path / "forgellm" / "history"
    history.store_string("kept")
    assert file.read_text().endswith("+kept\n")
    file.unlink()
    file.mkdir()  # opening it fails, as on a full disk
    history.store_string("lost")
