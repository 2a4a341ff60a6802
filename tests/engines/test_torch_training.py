"""The torch engine against plain references: PEFT, unpacked documents, big batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers

from forgellm.engines.layers import target_layers
from forgellm.engines.torch import load
from forgellm.engines.torch.attention import NAME, packed_layout
from forgellm.engines.torch.cross_entropy import linear_cross_entropy, target_log_probs
from forgellm.engines.torch.scoring import loss_sum
from forgellm.engines.torch.train import TorchTrainEngine
from forgellm.errors import ConfigError, UnsupportedModel
from forgellm.schema.recipe import Recipe
from tiny_model import build_tiny_model, documents_of, random_batch
from training_engines import plain_loss

CPU = torch.device("cpu")


def recipe(**fields: Any) -> Recipe:
    base = {"model_name": "tiny", "dataset": "d", "dtype": "float32", "lora_rank": 4, "seed": 3}
    return Recipe(**{**base, **fields}).resolved()


def never() -> bool:
    return False


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize("dense", [False, True])
def test_packed_attention_gradients_equal_eager(
    tmp_path: Path, architecture: str, dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import forgellm.engines.torch.attention as attention

    monkeypatch.setattr(attention, "_BLOCK_BYTES", 32)  # several blocks in a short row
    if dense:  # what a GPU takes
        monkeypatch.setattr(attention, "_is_on_cpu", lambda query: False)
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
    (plain * 3).backward(retain_graph=True)
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    torch.testing.assert_close(ours[0], hidden.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[1], weight.grad, rtol=1e-4, atol=1e-5)
    scores = target_log_probs(hidden, weight, targets, softcap=softcap, logit_scale=0.7)
    expected = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    counts = torch.randn(50)  # how much each counts, which only the backward pass learns
    found = torch.autograd.grad((scores * counts).sum(), (hidden, weight))
    wanted = torch.autograd.grad((expected * counts).sum(), (hidden, weight))
    for ours_now, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours_now, theirs, rtol=1e-4, atol=1e-5)


def test_log_probs_survive_extreme_logits() -> None:
    hidden = torch.tensor([[300.0, 0.0], [-300.0, 1.0]], requires_grad=True)
    weight = torch.eye(2)
    loss = linear_cross_entropy(hidden, weight, torch.tensor([1, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(300.0)
    assert torch.isfinite(hidden.grad).all()


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
    batch = random_batch([[128, 128]] * 4, vocab_size=vocab)
    engine.rehearse(random_batch([[8, 8]], vocab_size=vocab))
    from forgellm.engines.torch import memory

    memory.reset_peak(CPU)
    start = memory.peak_bytes(CPU)
    engine.step(batch, 0.0, update=False)
    engine.validation_loss([batch], never)
    logits_bytes = 1024 * vocab * 4
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
