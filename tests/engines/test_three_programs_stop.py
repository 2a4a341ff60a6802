"""A base model taught to answer, then published: other programs stop where it was taught to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import mlx_lm
import pytest
import tokenizers
import torch
import transformers

from forgellm import supervisor
from forgellm.data.chat.turn_ends import stop_ids
from forgellm.data.tokenizer import Tokenizer
from forgellm.generation.loading import find_source, open_source
from forgellm.generation.prompt import build_prompt
from forgellm.generation.session import Done, answer
from forgellm.paths import Workspace
from forgellm.publishing.build import build_published
from forgellm.publishing.build_adapter import build_adapter
from forgellm.publishing.build_combined import build_combined
from forgellm.publishing.build_quantised import build_quantised
from forgellm.publishing.combine import pinned
from forgellm.publishing.gguf_export import build_gguf
from forgellm.runs.checkpoints import Checkpoint, best_checkpoint
from forgellm.runs.store import Run
from forgellm.schema.combining import CombineRequest
from forgellm.schema.exports import ExportRequest
from forgellm.schema.generation import LoadRequest, Sampling
from forgellm.schema.quantising import QuantiseRequest
from forgellm.training.session import Session
from llama_cpp import answers
from tiny_model import build_tiny_model
from tiny_workspace import build_tiny_workspace, tiny_recipe, write_conversations

LIMIT = 40
QUESTION = [{"role": "user", "content": "After stones?"}]
OWN_TEMPLATE = (
    "{% for m in messages %}{{ '<|turn|>' + m.role + '\n' + m.content + '<|done|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn|>assistant\n' }}{% endif %}"
)


def base_model(root: Path, template: str | None) -> Workspace:
    """A model whose files name the end of a document alone, as those of base models do."""
    workspace = build_tiny_workspace(root)
    folder = workspace.base_models / "tiny"
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|turn|>", "<|done|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    build_tiny_model(folder, vocab_size=402)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "bos_token": None}
    settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text('{"eos_token_id": 0}')
    write_conversations(workspace, "chat")
    return workspace


def taught(workspace: Workspace, **fields: Any) -> Run:
    values = {"fine_tune_type": "full", "max_iterations": 60, "learning_rate": 2e-2, **fields}
    recipe = tiny_recipe(
        training_type="ift",
        dataset="chat",
        data_mixture_ratio=1.0,
        save_every=values["max_iterations"],
        batch_size=4,
        max_seq_length=128,
        **values,
    )
    run, lock = supervisor.claim_new_run(workspace, recipe, max_seq_length=128)
    with lock:
        Session().train(run)
    return run


@pytest.mark.parametrize(
    ("template", "end"),
    [
        pytest.param(None, "<|im_end|>", id="chatml"),
        pytest.param(OWN_TEMPLATE, "<|done|>", id="own"),
    ],
)
def test_three_programs_stop_where_ours_does(
    template: str | None, end: str, tmp_path: Path
) -> None:
    workspace = base_model(tmp_path / "w", template)
    run = taught(workspace)
    said = our_answer(workspace, run)
    assert " and " in said

    published = build_published(run, _best(run), lambda done, text: None)
    folder = workspace.root / published.published_model_path
    assert in_transformers(folder, end) == said
    assert in_mlx_lm(folder) == said
    made = build_gguf(
        ExportRequest(model_name=published.model_name, format="gguf", type="F32"),
        workspace,
        lambda done, text: None,
    )
    file = workspace.root / made["path"] / made["file"]
    assert in_llama_cpp(file) == said
    assert f'PARAMETER stop "{end}"' in (file.parent / "Modelfile").read_text()
    # The end of a document is what it was, for training on documents.
    assert Tokenizer.load(folder).document_end_id == 0
    assert stop_ids(Tokenizer.load(folder)) == {0, Tokenizer.load(folder).token_id(end)}


def test_what_is_made_of_an_adapter_or_a_model_says_where_answers_end(tmp_path: Path) -> None:
    workspace = base_model(tmp_path / "w", None)
    runs = [
        taught(workspace, fine_tune_type="lora", max_iterations=2, seed=seed) for seed in (1, 2)
    ]
    kinds: tuple[Literal["peft", "mlx", "gguf-lora"], ...] = ("peft", "mlx", "gguf-lora")
    for kind in kinds:
        wanted = ExportRequest(model_name=runs[0].name, format=kind)
        made = build_adapter(wanted, workspace, lambda done, text: None)
        folder = workspace.root / made["path"]
        template = runs[0].folder / "chat_template.jinja"
        assert (folder / "chat_template.jinja").read_bytes() == template.read_bytes()
        assert '--extra-eos-token "<|im_end|>"' in (folder / "README.md").read_text()
    combined = CombineRequest(checkpoints=[f"{run.name}@2" for run in runs], name="both")
    made_of_two = build_combined(pinned(combined, workspace), workspace, lambda done, text: None)
    quantised = build_quantised(
        QuantiseRequest(model_name=made_of_two.model_name, bits=8, group_size=32),
        workspace,
        lambda done, text: None,
    )
    for made_path in (made_of_two.published_model_path, quantised.published_model_path):
        for name in ("config.json", "generation_config.json"):
            values = json.loads((workspace.root / made_path / name).read_text())
            assert values["eos_token_id"] == [0, 2]


def _best(run: Run) -> Checkpoint:
    found = best_checkpoint(run.folder)
    assert found is not None
    return found


def our_answer(workspace: Workspace, run: Run) -> str:
    request = LoadRequest(model_name="tiny", adapter_path=str(workspace.relative(run.folder)))
    engine, tokenizer = open_source(find_source(request, workspace))
    ids = build_prompt(tokenizer, QUESTION[0]["content"], [], is_base_model=None)
    sampling = Sampling.greedy(LIMIT)
    (done,) = (item for item in answer(engine, tokenizer, ids, sampling) if isinstance(item, Done))
    assert done.finish_reason == "stop"
    return done.response


def in_transformers(folder: Path, end: str) -> str:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    made = model.generate(**prompt, max_new_tokens=LIMIT, do_sample=False, pad_token_id=0)[0]
    new = made[prompt["input_ids"].shape[1] :].tolist()
    assert len(new) < LIMIT and new[-1] == tokenizer.convert_tokens_to_ids(end)
    return str(tokenizer.decode(new, skip_special_tokens=True))


def in_mlx_lm(folder: Path) -> str:
    model, tokenizer = mlx_lm.load(str(folder))
    ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    pieces = list(mlx_lm.stream_generate(model, tokenizer, prompt=ids, max_tokens=LIMIT))
    assert pieces[-1].finish_reason == "stop"
    return "".join(piece.text for piece in pieces)


def in_llama_cpp(file: Path) -> str:
    asked = {"messages": QUESTION, "max_tokens": LIMIT, "temperature": 0, "repeat_penalty": 1.0}
    (found,) = answers(file, [asked])
    assert found["choices"][0]["finish_reason"] == "stop"
    return str(found["choices"][0]["message"]["content"])
