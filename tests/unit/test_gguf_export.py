"""GGUF files as they are exported: read back exactly, answered alike by llama.cpp, in bounded memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file, save_file
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from forgellm.catalog import gguf_writer
from forgellm.catalog.gguf_export_config import export_config
from forgellm.catalog.gguf_file import GgufFile
from forgellm.catalog.gguf_import import import_gguf
from forgellm.catalog.gguf_writer import plan_gguf, writable_types, write_gguf
from forgellm.data.tokenizer import Tokenizer
from forgellm.errors import ForgeError, UnsupportedModel
from forgellm.paths import Workspace
from forgellm.publishing.gguf_tokenizer import carried_tokenizer
from forgellm.publishing.same_tokens import require_same_tokens
from gguf_models import VARIANTS, build_model
from llama_cpp import answers
from tiny_tokenizer import TRAINING_TEXT, build_tiny_tokenizer


def saved(folder: Path, architecture: str, **changes: Any) -> Any:
    """A model and its tokenizer in `folder`."""
    build_tiny_tokenizer(folder)
    model = build_model(architecture, **changes)
    generation = (folder / "generation_config.json").read_text()
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(generation)
    return model


def export(model: Path, file: Path, kind: str = "F32") -> Path:
    described = export_config(json.loads((model / "config.json").read_text()))
    plan = plan_gguf(described, gguf.GGMLQuantizationType[kind])
    tokenizer = carried_tokenizer(model, Tokenizer.load(model), described.config["vocab_size"])
    write_gguf(plan, model, tokenizer, "tiny", file, lambda done: None)
    return file


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_exported_and_imported_again_is_the_same_model(
    variant: str, tmp_path: Path
) -> None:
    architecture, changes = VARIANTS[variant]
    model = saved(tmp_path / "m", architecture, **changes)
    file = export(tmp_path / "m", tmp_path / "m.gguf")
    again = import_gguf(file, Workspace(tmp_path), "again", dtype="float32")
    before, after = (load_file(f / "model.safetensors") for f in (tmp_path / "m", again))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        # Gemma's norms are kept as 1 + w.
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=2e-7)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(again, dtype=torch.float32).eval()
    ids = torch.arange(40).reshape(2, 20) * 7 % 400
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
    require_same_tokens(Tokenizer.load(tmp_path / "m"), Tokenizer.load(again), "the file")


@pytest.mark.parametrize("variant", VARIANTS)
def test_llama_cpp_gives_the_same_greedy_tokens_as_transformers(
    variant: str, tmp_path: Path
) -> None:
    architecture, changes = VARIANTS[variant]
    if architecture in ("gemma2", "gemma3"):
        changes = {**changes, "sliding_window": 16}
    model = saved(tmp_path / "m", architecture, **changes)
    file = export(tmp_path / "m", tmp_path / "m.gguf")
    tokenizer = Tokenizer.load(tmp_path / "m")
    # llama.cpp shows no token that ends within a character, and would end at these control tokens.
    left_out = [0, 1, 2, *(i for i in range(3, 420) if not tokenizer.decode([i]).isascii()), *range(400, 420)]  # fmt: skip
    ids = tokenizer.encode("In winter the rivers freeze and the wheel stands still.")
    body = {"n_predict": 12, "temperature": 0, "n_probs": 1}
    body["logit_bias"] = [[index, False] for index in left_out]
    (said,) = answers(file, [{"prompt": tokenizer.decode(ids), **body}])
    found = said["choices"][0]["logprobs"]["content"]
    with torch.no_grad():
        expected = model.generate(
            torch.tensor([ids]), max_new_tokens=12, do_sample=False, suppress_tokens=left_out
        )[0, len(ids) :]
    assert said["usage"]["prompt_tokens"] == len(ids)
    assert [item["id"] for item in found] == expected.tolist()


def test_an_answer_ends_where_llama_cpp_meets_the_end_of_a_turn(tmp_path: Path) -> None:
    """Weights that make one control token likeliest, whatever is asked."""
    saved(tmp_path / "m", "llama", tie_word_embeddings=False)
    path = tmp_path / "m" / "model.safetensors"
    weights = load_file(path)
    state = weights["model.norm.weight"]
    weights["model.norm.weight"] = torch.zeros_like(state)
    save_file(weights, path, metadata={"format": "pt"})
    file = export(tmp_path / "m", tmp_path / "m.gguf")
    body = {"messages": [{"role": "user", "content": "the mill"}], "max_tokens": 9}
    # All logits are 0 but for the bias on <|im_end|>, which ends the answer at once.
    (said,) = answers(file, [body | {"logit_bias": {"2": 100}, "temperature": 0}])
    assert said["choices"][0]["finish_reason"] == "stop"
    assert said["choices"][0]["message"]["content"] == ""
    # The template in the file gave the prompt: <|im_start|>user\n ... <|im_end|>\n<|im_start|>assistant\n
    tokenizer = Tokenizer.load(tmp_path / "m")
    prompt = "<|im_start|>user\nthe mill<|im_end|>\n<|im_start|>assistant\n"
    assert said["usage"]["prompt_tokens"] == len(tokenizer.encode_template(prompt))


@pytest.mark.parametrize("kind", writable_types())
def test_every_type_holds_the_nearest_that_it_can(kind: str, tmp_path: Path) -> None:
    changes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
    saved(tmp_path / "m", "llama", **changes, num_hidden_layers=1)
    file = GgufFile(export(tmp_path / "m", tmp_path / "m.gguf", kind))
    weights = load_file(tmp_path / "m" / "model.safetensors")
    up = weights["model.layers.0.mlp.up_proj.weight"].numpy()
    stored = file.tensors["blk.0.ffn_up.weight"]
    assert stored.kind.name == kind
    expected = dequantize(quantize(up, stored.kind), stored.kind)
    np.testing.assert_array_equal(np.concatenate(list(file.read(stored))), expected)
    assert file.tensors["blk.0.attn_norm.weight"].kind.name == "F32"
    bits = {name: _bits(file, name) for name in ("token_embd.weight", "blk.0.ffn_up.weight")}
    assert bits["token_embd.weight"] >= min(8.5, bits["blk.0.ffn_up.weight"])


def _bits(file: GgufFile, name: str) -> float:
    tensor = file.tensors[name]
    return 8 * tensor.num_bytes / float(np.prod(tensor.shape))


def test_rows_that_no_block_fits_are_float16(tmp_path: Path) -> None:
    saved(tmp_path / "m", "llama", hidden_size=24, intermediate_size=64, head_dim=6)
    file = GgufFile(export(tmp_path / "m", tmp_path / "m.gguf", "Q8_0"))
    assert file.tensors["blk.0.ffn_up.weight"].kind.name == "F16"  # rows of 24
    assert file.tensors["blk.0.ffn_down.weight"].kind.name == "Q8_0"  # rows of 64


def test_memory_is_bounded_by_a_block_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elements = 100_000
    monkeypatch.setattr(gguf_writer, "_BLOCK_ELEMENTS", elements)
    saved(tmp_path / "m", "llama", hidden_size=256, intermediate_size=4096, num_hidden_layers=4)
    export(tmp_path / "m", tmp_path / "m.gguf")  # what is imported and cached does not count
    tracemalloc.start()
    file = export(tmp_path / "m", tmp_path / "m.gguf", "Q8_0")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * elements * 4  # a few float32 arrays of one block
    assert file.stat().st_size > 4 * peak


@pytest.mark.parametrize(
    ("architecture", "changes", "said"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act = gelu"),
        ("llama", {"quantization": {"bits": 4}}, "quantised already"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_parameters"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama", {"model_type": "mamba"}, "'mamba' cannot be written"),
        ("llama", {"hidden_size": None}, "hidden_size"),
        ("qwen3", {"attention_bias": True}, "attention_bias"),
        ("gemma2", {"query_pre_attn_scalar": 11}, "query_pre_attn_scalar = 11"),
        ("gemma2", {"final_logit_softcapping": None}, "final_logit_softcapping"),
        ("gemma3", {"layer_types": ["full_attention"] * 7}, "layer_types"),
    ],
)  # fmt: skip
def test_what_the_format_cannot_say_is_refused(
    architecture: str, changes: dict[str, Any], said: str
) -> None:
    config = build_model(architecture).config.to_dict() | changes
    with pytest.raises(UnsupportedModel, match=said):
        export_config(config)


def test_where_all_layers_see_a_window_the_context_ends_with_it() -> None:
    config = transformers.MistralConfig(sliding_window=77, head_dim=128).to_dict()
    described = export_config(config)
    assert (described.name, described.config["max_position_embeddings"]) == ("llama", 77)


def test_a_model_with_other_weights_than_its_architectures_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "m", "llama")
    path = tmp_path / "m" / "model.safetensors"
    weights = load_file(path)
    extra = {**weights, "model.layers.0.extra.weight": torch.zeros(2, 2)}
    absent = {k: v for k, v in weights.items() if k != "model.norm.weight"}
    packed = {**weights, "model.norm.weight": torch.zeros(32, dtype=torch.int32)}
    for changed, said in ((extra, "extra"), (absent, "model.norm"), (packed, "I32")):
        save_file(changed, path)
        with pytest.raises(UnsupportedModel, match=said):
            export(tmp_path / "m", tmp_path / "m.gguf")


# Tokenizers


def sentencepiece(folder: Path, *, prepends: bool) -> Tokenizer:
    """As transformers converts Llama's (`prepends`) and Gemma's."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="never")
    trainer = trainers.BpeTrainer(vocab_size=330, show_progress=False)
    trained.train_from_iterator([TRAINING_TEXT], trainer)
    learned = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += sorted(learned["vocab"], key=learned["vocab"].get)
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            {token: index for index, token in enumerate(pieces)},
            [tuple(merge) for merge in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )  # fmt: skip
    )
    shown = normalizers.Replace(" ", "▁")
    first = [normalizers.Prepend("▁")] if prepends else []
    tokenizer.normalizer = normalizers.Sequence([*first, shown])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<end_of_turn>"])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 589]}')
    return Tokenizer.load(folder)


@pytest.mark.parametrize("prepends", [True, False])
def test_sentencepiece_scores_join_as_the_merges_did(prepends: bool, tmp_path: Path) -> None:
    original = sentencepiece(tmp_path / "m", prepends=prepends)
    settings = (tmp_path / "m" / "generation_config.json").read_text()
    model = build_model("llama", vocab_size=640)
    model.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text(settings)
    file = export(tmp_path / "m", tmp_path / "m.gguf")
    again = Tokenizer.load(import_gguf(file, Workspace(tmp_path), "again"))
    require_same_tokens(original, again, "the file")
    assert original.encode(TRAINING_TEXT) == again.encode(TRAINING_TEXT)
    metadata = GgufFile(file).metadata
    assert metadata["tokenizer.ggml.add_space_prefix"] is prepends
    (said,) = answers(file, [{"prompt": TRAINING_TEXT, "n_predict": 1}], context=2048)
    assert said["usage"]["prompt_tokens"] == 1 + len(original.encode(TRAINING_TEXT))


@pytest.mark.parametrize(
    ("name", "pre_tokenizer"),
    [
        ("gpt-2", pre_tokenizers.ByteLevel(add_prefix_space=False)),
        (
            "smollm",
            pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            ),
        ),
    ],
)
def test_the_way_of_cutting_text_is_known_by_what_it_does(
    name: str, pre_tokenizer: Any, tmp_path: Path
) -> None:
    path = build_tiny_tokenizer(tmp_path) / "tokenizer.json"
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.save(str(path))
    found = carried_tokenizer(tmp_path, Tokenizer.load(tmp_path), 400)
    assert found["tokenizer.ggml.pre"] == name
    assert (found["tokenizer.ggml.eos_token_id"], found["tokenizer.ggml.eot_token_id"]) == (2, 2)
    assert found["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]


def test_an_unknown_way_of_cutting_text_is_refused(tmp_path: Path) -> None:
    path = build_tiny_tokenizer(tmp_path) / "tokenizer.json"
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel()]
    )
    tokenizer.save(str(path))
    with pytest.raises(UnsupportedModel, match="none of the known ways"):
        carried_tokenizer(tmp_path, Tokenizer.load(tmp_path), 400)


def test_more_tokens_than_rows_are_refused(tmp_path: Path) -> None:
    build_tiny_tokenizer(tmp_path)
    with pytest.raises(UnsupportedModel, match="more tokens"):
        carried_tokenizer(tmp_path, Tokenizer.load(tmp_path), 300)


@pytest.mark.parametrize("change", ["end", "template", "split", "control"])
def test_a_tokenizer_that_is_not_the_same_is_noticed(change: str, tmp_path: Path) -> None:
    original = Tokenizer.load(build_tiny_tokenizer(tmp_path / "a"))
    other = build_tiny_tokenizer(tmp_path / "b")
    spec = json.loads((other / "tokenizer.json").read_text())
    settings = json.loads((other / "tokenizer_config.json").read_text())
    if change == "end":  # <|im_end|> is text like any other
        spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] != "<|im_end|>"]
        settings |= {"eos_token": "<|endoftext|>", "pad_token": None}
        (other / "generation_config.json").unlink()
    elif change == "template":
        settings["chat_template"] += " "
    elif change == "control":
        spec["added_tokens"][1]["special"] = False
        settings["bos_token"] = None
    else:
        spec["model"]["merges"] = spec["model"]["merges"][:20]
    (other / "tokenizer.json").write_text(json.dumps(spec))
    (other / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ForgeError, match="not the model's"):
        require_same_tokens(original, Tokenizer.load(other), "the file")
