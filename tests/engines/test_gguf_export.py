"""`forgellm models export` as a whole: the folder, the child process, what is refused, the real model."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from forgellm import hardware
from forgellm.catalog import gguf_writer
from forgellm.catalog.gguf_import import import_gguf
from forgellm.cli.main import main
from forgellm.data.tokenizer import Tokenizer
from forgellm.errors import Conflict, DiskTooSmall, ForgeError, InvalidRequest, UnsupportedModel
from forgellm.paths import Workspace
from forgellm.publishing.comparison import general_texts
from forgellm.publishing.exports import export_model, list_exports, remove_export
from forgellm.publishing.family import family
from forgellm.publishing.gguf_export import build_gguf
from forgellm.schema.exports import ExportRequest
from gguf_models import real_gguf
from llama_cpp import answers
from tiny_model import build_quantised_model
from tiny_workspace import build_tiny_workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return build_tiny_workspace(tmp_path / "w")


def wanted(kind: str = "Q8_0", model: str = "base/tiny") -> ExportRequest:
    return ExportRequest(model_name=model, format="gguf", type=kind)


def build(workspace: Workspace, kind: str = "Q8_0", model: str = "base/tiny") -> dict[str, Any]:
    return build_gguf(wanted(kind, model), workspace, lambda done, text: None)


def left(workspace: Workspace) -> list[str]:
    return sorted(path.name for path in workspace.exported_models.glob("*") if path.is_dir())


def test_the_command_leaves_a_folder_that_tells_what_it_is(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--workspace", str(workspace.root)]
    options = ["export", "base/tiny", "--format", "gguf", "--type", "q8_0"]
    assert main(["models", *place, *options]) == 0
    said = capsys.readouterr().out
    folder = workspace.exported_models / "tiny-gguf-q8_0"
    assert f"models/exported/{folder.name}/" in said and "tiny-Q8_0.gguf" in said
    names = {path.name for path in folder.iterdir()}
    assert names == {"tiny-Q8_0.gguf", "Modelfile", "README.md", "lineage.json"}
    assert (folder / "Modelfile").read_text().splitlines() == [
        "FROM ./tiny-Q8_0.gguf",
        "PARAMETER num_ctx 512",
        'PARAMETER stop "<|endoftext|>"',
        'PARAMETER stop "<|im_end|>"',
    ]
    note = json.loads((folder / "lineage.json").read_text())
    assert (note["kind"], note["made_from"], note["type"]) == ("gguf", ["base/tiny"], "Q8_0")
    figures = note["figures"]
    assert figures["verification"]["positions"] > 200
    assert figures["verification"]["mean_kl"] <= 0.02
    assert figures["perplexity"] == pytest.approx(figures["model_perplexity"], rel=0.02)
    card = (folder / "README.md").read_text()
    assert str(figures["perplexity"]) in card and note["command"] in card
    assert str(workspace.root) not in card
    (member,) = (m for m in family(workspace) if m.kind == "gguf")
    assert (member.name, member.made_from) == (f"exported/{folder.name}", ["base/tiny"])

    with pytest.raises(Conflict, match="there already"):
        export_model(wanted(), workspace)
    (item,) = list_exports(workspace)
    assert (item.name, item.kind, item.made_from) == (folder.name, "gguf", ["base/tiny"])
    assert "tiny-Q8_0.gguf" in item.files
    assert main(["models", *place, "remove", f"exported/{folder.name}", "--yes"]) == 0
    assert left(workspace) == []


def test_what_is_no_export_is_not_removed(workspace: Workspace) -> None:
    workspace.exported_models.mkdir(parents=True)
    for name in ("..", "../base", "", "no", ".publish.lock", "a/b"):
        with pytest.raises(ForgeError, match="no such export"):
            remove_export(name, workspace)
    assert (workspace.base_models / "tiny").is_dir()


@pytest.mark.parametrize("share", [0.02, 0.3, 0.8])
def test_a_kill_at_any_moment_leaves_nothing_to_see_and_the_next_attempt_works(
    workspace: Workspace, share: float
) -> None:
    request = wanted().model_dump_json()
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "forgellm.publishing", "export", request],
        env=os.environ | {"FORGELLM_WORKSPACE": str(workspace.root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert child.stdout is not None
    for line in child.stdout:
        if json.loads(line).get("progress", 1) >= share:
            break
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert [name for name in left(workspace) if not name.startswith(".")] == []
    assert list_exports(workspace) == []
    if share == 0.3:  # once is enough
        build(workspace)
        assert left(workspace) == ["tiny-gguf-q8_0"]


def test_cancelling_leaves_nothing(workspace: Workspace) -> None:
    stop: list[Any] = []

    def end(done: float, text: str) -> None:
        if done >= 0.4 and stop:
            threading.Thread(target=stop.pop()).start()

    with pytest.raises(ForgeError, match="without a result"):
        export_model(wanted(), workspace, end, stop.append)
    assert left(workspace) == []


def test_weights_in_the_wrong_order_are_not_exported(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_writer.TensorPair, "rows_of_model", lambda self: None)
    with pytest.raises(ForgeError, match="does not answer as the model does") as caught:
        build(workspace)
    assert caught.value.details["positions"] > 200
    assert left(workspace) == []


def test_a_type_that_is_too_coarse_for_the_model_is_not_exported(workspace: Workspace) -> None:
    weights = workspace.base_models / "tiny" / "model.safetensors"
    tensors = load_file(weights)
    # A few large numbers take the whole range of a block's scale.
    tensors = {n: t * torch.where(torch.rand_like(t) < 0.03, 60.0, 1.0) if t.ndim > 1 else t for n, t in tensors.items()}  # fmt: skip
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ForgeError, match="does not answer") as caught:
        build(workspace, "MXFP4")
    assert "more bits" in caught.value.suggestion
    assert left(workspace) == []


def test_a_disk_without_room_is_named_before_anything_is_written(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "disk_free_bytes", lambda folder: 1000)
    with pytest.raises(DiskTooSmall):
        build(workspace)
    assert left(workspace) == []


def test_what_cannot_be_exported_is_said_at_once(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGELLM_LLAMA_QUANTIZE", str(tmp_path / "absent"))
    with pytest.raises(InvalidRequest, match="llama-quantize") as caught:
        export_model(wanted("Q4_K_M"), workspace)
    assert "FORGELLM_LLAMA_QUANTIZE" in caught.value.suggestion
    with pytest.raises(InvalidRequest, match="no type"):
        export_model(wanted("Q9_9"), workspace)
    folder = workspace.base_models / "packed"
    build_quantised_model(folder, bits=4)
    with pytest.raises(UnsupportedModel, match="quantised already"):
        export_model(wanted(model="base/packed"), workspace)


# llama.cpp's own code for K-quants, called as `llama-quantize` calls it.
QUANTIZE = """\
#!{python}
import ctypes, sys
import gguf, numpy as np
from xllamacpp import xllamacpp
import gguf.quants

source, target, name, threads = sys.argv[1:]
if name == "Q5_K_M":
    sys.exit("quantising failed: no such tensor")
library = ctypes.CDLL(xllamacpp.__file__)
kind = gguf.GGMLQuantizationType.Q6_K
reader = gguf.GGUFReader(source)
writer = gguf.GGUFWriter(target, reader.get_field("general.architecture").contents())
for field in reader.fields.values():
    if not field.name.startswith(("GGUF.", "general.architecture")):
        sub = field.types[1] if len(field.types) > 1 else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub)
for tensor in reader.tensors:
    plain = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    if plain.ndim == 1:
        writer.add_tensor(tensor.name, plain)
        continue
    rows, columns = plain.shape
    packed = np.zeros((rows, columns // 256 * 210), np.uint8)
    library.quantize_q6_K.restype = ctypes.c_size_t
    library.quantize_q6_K(
        plain.ctypes.data_as(ctypes.c_void_p), packed.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(rows), ctypes.c_int64(columns), None,
    )
    writer.add_tensor(tensor.name, packed, raw_dtype=kind)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""


def test_k_quants_are_made_by_llama_quantize_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = build_tiny_workspace(
        tmp_path / "w", hidden_size=256, intermediate_size=256, head_dim=64
    )
    program = tmp_path / "llama-quantize"
    program.write_text(QUANTIZE.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    made = build(workspace, "Q6_K")
    folder = workspace.root / made["path"]
    assert {path.suffix for path in folder.iterdir()} == {".gguf", ".md", ".json", ""}
    (file,) = folder.glob("*.gguf")
    size = sum(t.numel() for t in load_file(workspace.base_models / "tiny" / "model.safetensors").values())  # fmt: skip
    assert file.stat().st_size < size  # 6.6 bits a weight, and the vocabulary
    assert made["verification"]["mean_kl"] > 0
    with pytest.raises(ForgeError, match="without a file") as caught:
        build(workspace, "Q5_K_M")
    assert "no such tensor" in caught.value.details["output"]
    assert left(workspace) == [folder.name]


@pytest.mark.slow
def test_smollm2_answers_alike_in_llama_cpp_and_transformers(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path.resolve())
    import_gguf(real_gguf(tmp_path), workspace, "real")
    files = {}
    for kind in ("BF16", "Q8_0"):
        made = build(workspace, kind, "base/real")
        files[kind] = workspace.root / made["path"] / made["file"]
    perplexities = {kind: perplexity_in_transformers(file) for kind, file in files.items()}
    assert perplexities["Q8_0"] == pytest.approx(perplexities["BF16"], rel=0.01)

    own = [perplexity_in_llama_cpp(files[kind], workspace) for kind in files]
    assert own[1] == pytest.approx(own[0], rel=0.02)  # of few tokens

    folder = workspace.base_models / "real"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    turns = [{"role": "user", "content": "Name three colours, please."}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    expected = model.generate(
        torch.tensor([ids]), max_new_tokens=60, do_sample=False, eos_token_id=2, pad_token_id=2
    )[0, len(ids) :].tolist()
    chat = {"messages": turns, "max_tokens": 60, "temperature": 0, "repeat_penalty": 1.0}
    (said,) = answers(files["BF16"], [chat], context=1024)
    assert said["usage"]["prompt_tokens"] == len(ids)
    assert said["choices"][0]["message"]["content"] == tokenizer.decode(
        expected, skip_special_tokens=True
    )
    assert said["choices"][0]["finish_reason"] == ("stop" if expected[-1] == 2 else "length")


def perplexity_in_llama_cpp(file: Path, workspace: Workspace) -> float:
    """Of the beginning of one text; tokens that are not among the likeliest 3000 are left out."""
    ids = Tokenizer.load(workspace.base_models / "real").encode(general_texts()[0])[:120]
    asked = {"n_predict": 1, "n_probs": 3000, "temperature": 0}
    requests = [{"prompt": ids[:end], **asked} for end in range(1, len(ids))]
    found = []
    for expected, said in zip(ids[1:], answers(file, requests), strict=True):
        scored = (said["choices"][0]["logprobs"] or {}).get("content", [])
        top = {item["id"]: item["logprob"] for place in scored for item in place["top_logprobs"]}
        found += [top[expected]] if expected in top else []
    assert len(found) > 110
    return math.exp(-sum(found) / len(found))


def perplexity_in_transformers(file: Path) -> float:
    """On all the general text that comes with the package, by transformers' own reading of the file."""
    tokenizer = Tokenizer.load(file.parents[2] / "base" / "real")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()
    total, count = 0.0, 0
    for text in general_texts():
        ids = torch.tensor([tokenizer.encode(text)])
        with torch.no_grad():
            loss = model(ids, labels=ids).loss
        total, count = total + float(loss) * (ids.shape[1] - 1), count + ids.shape[1] - 1
    return math.exp(total / count)
