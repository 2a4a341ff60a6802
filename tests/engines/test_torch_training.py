"""The torch engine against plain references: PEFT, unpacked documents, big batches."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers

from forgellm.data.batches import Batch
from forgellm.engines.layers import target_layers
from forgellm.engines.torch import adapters, load
from forgellm.engines.torch.attention import NAME, packed_layout
from forgellm.engines.torch.cross_entropy import linear_cross_entropy, target_log_probs
from forgellm.engines.torch.generate import TorchGenerateEngine
from forgellm.engines.torch.lora import lora_layers, merge_lora
from forgellm.engines.torch.scoring import batch_log_probs, loss_sum
from forgellm.engines.torch.train import TorchTrainEngine
from forgellm.errors import ConfigError, UnsupportedModel
from forgellm.schema.recipe import Recipe
from tiny_model import ARCHITECTURES, build_tiny_model, documents_of, random_batch

CPU = torch.device("cpu")


def recipe(**fields: Any) -> Recipe:
    base = {"model_name": "tiny", "dataset": "d", "dtype": "float32", "lora_rank": 4, "seed": 3}
    return Recipe(**{**base, **fields}).resolved()


def never() -> bool:
    return False


def gradients(engine: TorchTrainEngine) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in engine._trainable.items() if p.grad is not None}


def randomise_adapters(engine: TorchTrainEngine, seed: int = 9) -> None:
    """lora_b starts at zero, which would hide errors in lora_a's gradient."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in lora_layers(engine.model).values():
            layer.lora_b.normal_(0, 0.1, generator=generator)


def plain_loss(model: Any, documents: Iterable[np.ndarray]) -> tuple[torch.Tensor, int]:
    """Sum of cross-entropies, document by document, by the model's own logits."""
    total, count = torch.zeros(()), 0
    for tokens in documents:
        ids = torch.from_numpy(tokens).long()[None]
        logits = model(input_ids=ids, use_cache=False).logits
        total = total + F.cross_entropy(logits[0, :-1].float(), ids[0, 1:], reduction="sum")
        count += len(tokens) - 1
    return total, count


@pytest.mark.parametrize("dora", [False, True])
def test_loss_and_gradients_equal_peft(tmp_path: Path, dora: bool) -> None:
    import peft

    folder = build_tiny_model(tmp_path / "m")
    engine = TorchTrainEngine(recipe(fine_tune_type="dora" if dora else "lora"), folder)
    randomise_adapters(engine)
    batch = random_batch([[9, 14, 7], [21, 5, 4]])
    engine.step(batch, 0.0, update=False)
    ours = gradients(engine)

    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", use_dora=dora, task_type="CAUSAL_LM"
    )
    reference = peft.get_peft_model(plain, config)
    theirs = {}
    for name, module in reference.named_modules():
        if hasattr(module, "lora_A"):
            layer = name.removeprefix("base_model.model.")
            ours_layer = lora_layers(engine.model)[layer]
            module.lora_A["default"].weight.data.copy_(ours_layer.lora_a.detach().T)
            module.lora_B["default"].weight.data.copy_(ours_layer.lora_b.detach().T)
            theirs[f"{layer}.lora_a"] = module.lora_A["default"].weight
            theirs[f"{layer}.lora_b"] = module.lora_B["default"].weight
            if dora:
                theirs[f"{layer}.m"] = module.lora_magnitude_vector["default"].weight
    total, count = plain_loss(reference, documents_of(batch))
    total.backward()

    metrics = engine.read_metrics()
    assert metrics.num_tokens == count
    assert metrics.training_loss == pytest.approx(total.item() / count, rel=1e-5)
    assert ours.keys() == theirs.keys()
    for name, grad in ours.items():
        expected = theirs[name].grad
        expected = expected.T if "lora_" in name else expected
        assert float((grad - expected).norm() / expected.norm()) < 1e-4, name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_loss_equals_unpacked_document_by_document(
    tmp_path: Path, architecture: str
) -> None:
    folder = build_tiny_model(tmp_path / "m", architecture)
    model = load.load_model(folder, torch.float32, CPU).eval()
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager"
    )
    batch = random_batch([[9, 20, 1], [3, 13, 14]], padding=6)
    with torch.no_grad():
        found = batch_log_probs(model, batch, CPU, torch.float32)
        for row in range(2):
            for segment in range(3):
                inside = (batch.segment_ids[row] == segment) & (batch.loss_mask[row] > 0)
                document = batch.tokens[row][batch.segment_ids[row] == segment]
                expected, _ = plain_loss(reference, [document])
                assert -found[row][inside].sum() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize("dense", [False, True])
def test_blocked_attention_gradients_equal_eager(
    tmp_path: Path, architecture: str, dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import forgellm.engines.torch.attention as attention

    monkeypatch.setattr(attention, "BLOCK", 8)  # several blocks in a short row
    if dense:  # what a GPU takes
        monkeypatch.setattr(attention, "_uses_blocks", lambda query: False)
    folder = build_tiny_model(tmp_path / "m", architecture)
    ours = load.load_model(folder, torch.float32, CPU)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager"
    )
    batch = random_batch([[19, 2, 11], [5, 13, 14]])
    loss_sum(ours, batch, CPU, torch.float32).backward()
    plain_loss(reference, documents_of(batch))[0].backward()
    for (name, a), (_, b) in zip(
        ours.named_parameters(), reference.named_parameters(), strict=True
    ):
        assert float((a.grad - b.grad).norm() / b.grad.norm()) < 1e-4, name


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_chunked_cross_entropy_equals_the_plain_one(
    softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import forgellm.engines.torch.cross_entropy as cross_entropy

    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", 1)  # 16 rows a chunk
    torch.manual_seed(0)
    hidden = torch.randn(50, 12, requires_grad=True)
    weight = torch.randn(31, 12, requires_grad=True)
    targets = torch.randint(0, 31, (50,))
    loss = linear_cross_entropy(hidden, weight, targets, softcap=softcap, logit_scale=0.7)
    (loss * 3).backward()
    ours = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    logits = hidden @ weight.T * 0.7
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    plain = F.cross_entropy(logits, targets, reduction="sum")
    (plain * 3).backward()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    torch.testing.assert_close(ours[0], hidden.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[1], weight.grad, rtol=1e-4, atol=1e-5)
    scores = target_log_probs(hidden, weight, targets, softcap=softcap, logit_scale=0.7)
    expected = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


def test_log_probs_survive_extreme_logits() -> None:
    hidden = torch.tensor([[300.0, 0.0], [-300.0, 1.0]], requires_grad=True)
    weight = torch.eye(2)
    loss = linear_cross_entropy(hidden, weight, torch.tensor([1, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(300.0)
    assert torch.isfinite(hidden.grad).all()


@pytest.mark.parametrize("fine_tune_type", ["lora", "full"])
def test_accumulation_equals_the_big_batch(tmp_path: Path, fine_tune_type: str) -> None:
    """Micro-batches with very different numbers of counted tokens."""
    folder = build_tiny_model(tmp_path / "m")
    big = random_batch([[9, 14, 7], [24, 5, 1]])
    big.loss_mask[1, 3:] = 0
    parts = [
        Batch(*(getattr(big, f)[r : r + 1] for f in big.__dataclass_fields__)) for r in range(2)
    ]
    weights = []
    for micro_batches in ([big], parts):
        engine = TorchTrainEngine(recipe(fine_tune_type=fine_tune_type), folder)
        for _ in range(3):
            for i, batch in enumerate(micro_batches):
                engine.step(batch, 1e-2, update=i == len(micro_batches) - 1)
        weights.append({n: p.detach().clone() for n, p in engine._trainable.items()})
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("fine_tune_type", ["lora", "dora", "full"])
def test_loss_falls_and_a_restored_engine_continues_bit_for_bit(
    tmp_path: Path, fine_tune_type: str
) -> None:
    folder = build_tiny_model(tmp_path / "m")
    settings = recipe(fine_tune_type=fine_tune_type, lora_dropout=0.1, weight_decay=0.1)
    batches = [random_batch([[9, 14, 7], [24, 5, 1]], seed=s % 3) for s in range(12)]
    engine = TorchTrainEngine(settings, folder)
    before = engine.validation_loss(batches[:3], never)
    for batch in batches[:6]:
        engine.step(batch, 1e-2, update=True)
    names = engine.save_weights(tmp_path, "0000006")
    engine.save_optimizer(tmp_path)
    middle = engine.validation_loss(batches[:3], never)
    for batch in batches[6:]:
        engine.step(batch, 1e-2, update=True)
    assert engine.validation_loss(batches[:3], never) < before

    again = TorchTrainEngine(settings, folder)
    again.restore(tmp_path / names[0], tmp_path)
    assert again.validation_loss(batches[:3], never) == middle
    for batch in batches[6:]:
        again.step(batch, 1e-2, update=True)
    for name, parameter in engine._trainable.items():
        assert torch.equal(parameter, again._trainable[name]), name


def test_same_seed_same_weights_other_seed_other_weights(tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "m")
    engines = [TorchTrainEngine(recipe(seed=s), folder) for s in (1, 1, 2)]
    first = [next(iter(e._trainable.values())) for e in engines]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


@pytest.mark.parametrize("fine_tune_type", ["lora", "full"])
def test_gradient_checkpointing_changes_nothing(tmp_path: Path, fine_tune_type: str) -> None:
    folder = build_tiny_model(tmp_path / "m")
    batch = random_batch([[9, 14, 7]])
    found = []
    for grad_checkpoint in (False, True):
        settings = recipe(fine_tune_type=fine_tune_type, grad_checkpoint=grad_checkpoint)
        engine = TorchTrainEngine(settings, folder)
        engine.step(batch, 0.0, update=False)
        found.append(gradients(engine))
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("fine_tune_type", ["lora", "full"])
def test_bfloat16_training_stays_close_to_float32(tmp_path: Path, fine_tune_type: str) -> None:
    folder = build_tiny_model(tmp_path / "m")
    batches = [random_batch([[9, 14, 7]], seed=s) for s in range(3)] * 5
    losses = []
    for dtype in ("float32", "bfloat16"):
        settings = recipe(fine_tune_type=fine_tune_type, dtype=dtype)
        engine = TorchTrainEngine(settings, folder)
        for batch in batches:
            engine.step(batch, 5e-3, update=True)
        losses.append(engine.validation_loss(batches[:3], never))
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize("fine_tune_type", ["lora", "dora"])
def test_merged_weights_give_the_logits_of_base_plus_adapter(
    tmp_path: Path, fine_tune_type: str
) -> None:
    folder = build_tiny_model(tmp_path / "m")
    engine = TorchTrainEngine(recipe(fine_tune_type=fine_tune_type), folder)
    for seed in range(5):
        engine.step(random_batch([[9, 14, 7]], seed=seed), 1e-2, update=True)
    engine.model.eval()
    batch = random_batch([[12, 18]], seed=77)
    with torch.no_grad():
        before = batch_log_probs(engine.model, batch, CPU, torch.float32)
        merge_lora(engine.model)
        after = batch_log_probs(engine.model, batch, CPU, torch.float32)
    assert not lora_layers(engine.model)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


def test_saved_adapter_has_mlx_lm_layout_and_loads_for_generation(tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "m")
    engine = TorchTrainEngine(recipe(num_layers=1), folder)
    for seed in range(5):
        engine.step(random_batch([[9, 14, 7]], seed=seed), 1e-2, update=True)
    (name,) = engine.save_weights(tmp_path, "0000005")
    config = engine.adapter_config()
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert name == "0000005_adapters.safetensors"
    tensors = adapters.read_adapter(tmp_path / name)
    assert tensors["model.layers.1.self_attn.q_proj.lora_a"].shape == (32, 4)
    assert tensors["model.layers.1.mlp.up_proj.lora_b"].shape == (4, 64)
    assert not any(".layers.0." in key for key in tensors)
    assert config is not None
    assert config["lora_parameters"]["scale"] == config["lora_alpha"] / config["r"] == 2.0
    assert "self_attn.q_proj" in config["lora_parameters"]["keys"]

    answering = TorchGenerateEngine(folder, tmp_path / name, dtype="float32")
    batch = random_batch([[12, 18]], seed=77)
    expected = -engine.validation_loss([batch], never)
    assert answering.token_log_probs(batch).sum() / batch.num_targets == pytest.approx(
        expected, rel=1e-5
    )


def test_rehearsal_leaves_weights_gradients_and_randomness_alone(tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "m")
    engine = TorchTrainEngine(recipe(lora_dropout=0.3), folder)
    before = {n: p.detach().clone() for n, p in engine._trainable.items()}
    rng = torch.get_rng_state()
    assert engine.rehearse(random_batch([[9, 14, 7]])) > 0
    assert torch.equal(rng, torch.get_rng_state())
    for name, parameter in engine._trainable.items():
        assert torch.equal(before[name], parameter)
        assert parameter.grad is None


def test_only_the_last_layers_train_in_full_mode_too(tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "m")
    engine = TorchTrainEngine(recipe(fine_tune_type="full", num_layers=1), folder)
    assert engine._trainable
    assert all(".layers.1." in name for name in engine._trainable)


def test_lora_targets(tmp_path: Path) -> None:
    model = load.load_model(build_tiny_model(tmp_path / "m"), torch.float32, CPU)
    linears = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
    assert len(target_layers(linears, "all", None)) == 14
    assert len(target_layers(linears, "attention", None)) == 8
    assert len(target_layers(linears, ["up_proj", "self_attn.q_proj"], 1)) == 2
    with pytest.raises(ConfigError, match="lora_target"):
        target_layers(linears, ["up_proj", "no_such"], None)


def test_no_logits_of_the_whole_batch_are_ever_held(tmp_path: Path) -> None:
    """A vocabulary so large that [B*T, V] logits would dwarf everything else."""
    vocab = 200_000
    folder = build_tiny_model(tmp_path / "m", vocab_size=vocab)
    engine = TorchTrainEngine(recipe(), folder)
    batch = random_batch([[128, 128], [128, 128]], vocab_size=vocab)
    engine.rehearse(random_batch([[8, 8]], vocab_size=vocab))
    from forgellm.engines.torch import memory

    memory.reset_peak(CPU)
    start = memory.peak_bytes(CPU)
    engine.step(batch, 0.0, update=False)
    engine.validation_loss([batch], never)
    logits_bytes = 512 * vocab * 4
    assert memory.peak_bytes(CPU) - start < logits_bytes / 2


def test_models_that_ignore_segments_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start-up proof must notice an architecture that leaks between documents."""
    import forgellm.engines.torch.scoring as scoring

    folder = build_tiny_model(tmp_path / "m")
    one_segment = packed_layout(torch.zeros(1, 24, dtype=torch.int32))
    monkeypatch.setattr(scoring, "packed_layout", lambda _: one_segment)
    with pytest.raises(UnsupportedModel, match="packed"):
        TorchTrainEngine(recipe(), folder)


def test_attention_is_registered_under_our_name() -> None:
    assert NAME in transformers.AttentionInterface().valid_keys()
