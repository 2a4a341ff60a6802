"""DPO and ORPO: loss and gradients against TRL's own code, and what holds of both engines."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from forgellm.data.batches import PairBatch
from forgellm.engines.base import TrainEngine
from preference_pairs import answers_of, random_pairs
from tiny_model import build_tiny_model
from tiny_tokenizer import build_tiny_tokenizer
from training_engines import (
    ENGINES,
    Arrays,
    gradients,
    make_engine,
    trainable,
    with_random_adapters,
)

SHAPE = [[(3, 9, 4), (5, 2, 7)], [(4, 1, 3), (1, 8, 12), (1, 1, 1)]]
METHODS = pytest.mark.parametrize("method", ["dpo", "orpo"])
BETA = 0.3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("m"))


@pytest.fixture
def batch() -> PairBatch:
    return random_pairs(SHAPE)


def make(name: str, folder: Path, method: str, **values: Any) -> TrainEngine:
    return make_engine(name, folder, training_type=method, preference_beta=BETA, **values)


def referred(engine: TrainEngine, batch: PairBatch) -> PairBatch:
    with engine.evaluating() as start:
        return replace(batch, reference=batch.answer_sums(start.token_log_probs(batch)))


def moved_engine(name: str, folder: Path, method: str, batch: PairBatch, out: Path) -> Any:
    """An engine whose adapter is no longer what it was at the start, and the batch with what the
    start said of it."""
    engine = make(name, folder, method)
    batch = referred(engine, batch)
    with_random_adapters(engine, out)
    return engine, batch


def lora_config() -> Any:
    import peft

    return peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


def lora_weights(model: Any, weights: Arrays) -> dict[str, torch.nn.Parameter]:
    """PEFT's parameters by our names, with the values of `weights`."""
    found = {}
    for full_name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            layer = full_name.removeprefix("base_model.model.")
            for part, ours in (("lora_A", "lora_a"), ("lora_B", "lora_b")):
                weight = getattr(module, part)["default"].weight
                weight.data.copy_(torch.from_numpy(weights[f"{layer}.{ours}"]).T)
                found[f"{layer}.{ours}"] = weight
    return found


def require_same(ours: Arrays, theirs: Arrays) -> None:
    assert ours.keys() == theirs.keys()
    for key, grad in ours.items():
        assert np.linalg.norm(grad - theirs[key]) <= 1e-5 * np.linalg.norm(theirs[key]), key


def trl_trainer(folder: Path, out: Path, **model: Any) -> Any:
    """TRL's DPOTrainer, which asks for a dataset and a tokenizer before it computes anything."""
    import trl
    from datasets import Dataset

    build_tiny_tokenizer(out)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(out / "tokenizer.json"), eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    config = trl.DPOConfig(
        output_dir=str(out), beta=BETA, bf16=False, use_cpu=True, report_to="none",
        gradient_checkpointing=False, loss_type=["sigmoid"], max_length=None,
    )  # fmt: skip
    data = Dataset.from_dict({"prompt": ["a"], "chosen": [" b"], "rejected": [" c"]})
    return trl.DPOTrainer(args=config, train_dataset=data, processing_class=tokenizer, **model)


def trl_loss(trainer: Any, batch: PairBatch) -> torch.Tensor:
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = [dict(zip(names, pair, strict=True)) for pair in answers_of(batch)]
    loss: torch.Tensor = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    return loss


@pytest.mark.filterwarnings("ignore")
def test_dpo_equals_trl(tmp_path: Path, folder: Path, batch: PairBatch) -> None:
    """Adapters against the plain model, and full training against a model of its own."""
    engine, batch = moved_engine("torch", folder, "dpo", batch, tmp_path / "a")
    engine.step(batch, 0.0, update=False)
    ours = {key: grad / batch.num_terms for key, grad in gradients(engine).items()}
    metrics = engine.read_metrics()
    trainer = trl_trainer(
        folder, tmp_path / "t", model=reference_model(folder), peft_config=lora_config()
    )
    weights = lora_weights(trainer.model, trainable(engine))
    loss = trl_loss(trainer, batch)
    loss.backward()
    assert metrics.training_loss == pytest.approx(loss.item(), rel=1e-5)
    require_same(ours, {key: w.grad.numpy().T for key, w in weights.items()})
    logged = {key: values[-1] for key, values in trainer._metrics["train"].items()}
    assert metrics.preference.reward_accuracy == pytest.approx(logged["rewards/accuracies"])
    assert metrics.preference.reward_margin == pytest.approx(logged["rewards/margins"], rel=1e-4)
    assert 0 < metrics.preference.reward_accuracy < 1

    other = build_tiny_model(tmp_path / "start", seed=5)
    batch = referred(make("torch", other, "dpo", fine_tune_type="full"), batch)
    engine = make("torch", folder, "dpo", fine_tune_type="full")
    engine.step(batch, 0.0, update=False)
    ours = {key: grad / batch.num_terms for key, grad in gradients(engine).items()}
    trainer = trl_trainer(
        folder, tmp_path / "t", model=reference_model(folder), ref_model=reference_model(other)
    )
    loss = trl_loss(trainer, batch)
    loss.backward()
    assert engine.read_metrics().training_loss == pytest.approx(loss.item(), rel=1e-5)
    require_same(ours, {n: p.grad.numpy() for n, p in trainer.model.named_parameters()})


@pytest.mark.filterwarnings("ignore")
def test_orpo_equals_trl_and_the_paper(tmp_path: Path, folder: Path, batch: PairBatch) -> None:
    """The odds ratio is TRL's. The other term is the paper's: where TRL learns the question too,
    only the chosen answer counts, each pair by its mean."""
    import peft
    from trl.experimental.orpo import ORPOTrainer

    engine, batch = moved_engine("torch", folder, "orpo", batch, tmp_path / "a")
    engine.step(batch, 0.0, update=False)
    ours = {key: grad / batch.num_terms for key, grad in gradients(engine).items()}
    model = peft.get_peft_model(reference_model(folder), lora_config())
    weights = lora_weights(model, trainable(engine))
    sides: list[list[torch.Tensor]] = [[], []]
    for question, *answers in answers_of(batch):
        for side, answer in zip(sides, answers, strict=True):
            ids = torch.tensor([question + answer])
            labels = ids.clone()
            labels[0, : len(question)] = -100
            logits = model(input_ids=ids, use_cache=False).logits
            side.append(ORPOTrainer.get_batch_logps(logits, labels, average_log_prob=True)[0])
    chosen, rejected = (torch.stack(side) for side in sides)
    itself = SimpleNamespace(beta=BETA, accelerator=SimpleNamespace(device="cpu"))
    odds, *_ = ORPOTrainer.odds_ratio_loss(itself, chosen, rejected)
    loss = (-chosen - odds).mean()
    loss.backward()
    assert engine.read_metrics().training_loss == pytest.approx(loss.item(), rel=1e-5)
    require_same(ours, {key: w.grad.numpy().T for key, w in weights.items()})


def reference_model(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")


@METHODS
def test_both_engines_compute_the_same(
    tmp_path: Path,
    folder: Path,
    batch: PairBatch,
    method: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for name in ("torch", "mlx"):
        monkeypatch.setattr(f"forgellm.engines.{name}.cross_entropy.CHUNK_BYTES", 1)  # 16 rows
        start = make(name, folder, method, fine_tune_type="full")
        scored = referred(start, batch)
        engine = make(
            name, build_tiny_model(tmp_path / name, seed=5), method, fine_tune_type="full"
        )
        engine.step(scored, 0.0, update=False)
        loss = engine.validation_loss([scored], lambda: False)
        found.append((scored.reference, gradients(engine), engine.read_metrics(), loss))
    (reference, grads, metrics, loss), others = found
    np.testing.assert_allclose(reference, others[0], rtol=1e-5)
    for key, grad in grads.items():
        assert np.linalg.norm(grad - others[1][key]) <= 1e-4 * np.linalg.norm(grad), key
    assert metrics.training_loss == pytest.approx(others[2].training_loss, rel=1e-5)
    assert loss == pytest.approx(metrics.training_loss, rel=1e-5)
    assert others[3] == pytest.approx(loss, rel=1e-5)
    assert metrics.preference is not None and others[2].preference is not None
    for field in fields(metrics.preference):
        ours, theirs = (getattr(m.preference, field.name) for m in (metrics, others[2]))
        assert ours == pytest.approx(theirs, rel=1e-4)


@ENGINES
def test_an_untouched_model_prefers_nothing(folder: Path, batch: PairBatch, name: str) -> None:
    engine = make(name, folder, "dpo")
    batch = referred(engine, batch)
    assert engine.validation_loss([batch], lambda: False) == pytest.approx(np.log(2), abs=1e-6)
    engine.step(batch, 0.0, update=False)
    preference = engine.read_metrics().preference
    assert preference is not None
    assert preference.reward_margin == pytest.approx(0, abs=1e-6)
    assert preference.chosen_log_prob < 0


@ENGINES
@METHODS
def test_accumulation_equals_the_big_batch(
    tmp_path: Path, folder: Path, batch: PairBatch, name: str, method: str
) -> None:
    """Micro-batches with different numbers of pairs."""
    weights = []
    for parts in ([batch], [batch.rows(0, 2), batch.rows(1, 2)]):
        engine, _ = moved_engine(name, folder, method, batch, tmp_path / "a")
        for _ in range(2):
            for number, part in enumerate(parts):
                engine.step(part, 1e-2, update=number == len(parts) - 1)
        weights.append(trainable(engine))
    for key in weights[0]:
        np.testing.assert_allclose(weights[0][key], weights[1][key], rtol=1e-3, atol=2e-5)


@ENGINES
def test_a_certain_answer_has_finite_odds(folder: Path, name: str) -> None:
    """Where a probability rounds to 1, the odds have no number."""
    engine = make(name, folder, "orpo")
    if name == "torch":
        from forgellm.engines.torch.preference import preference_sums

        batch = random_pairs(SHAPE)
        log_probs = torch.zeros(batch.reference.shape, requires_grad=True)
        sums = preference_sums(log_probs, batch, engine._recipe)  # type: ignore[attr-defined]
        sums[0].backward()
        assert log_probs.grad is not None and torch.isfinite(log_probs.grad).all()
        assert torch.isfinite(sums).all()
    else:
        import mlx.core as mx

        from forgellm.engines.mlx.preference import device_pairs, preference_sums

        pairs = device_pairs(random_pairs(SHAPE))

        def loss(log_probs: mx.array) -> mx.array:
            return preference_sums(log_probs, pairs, engine._recipe)[0]  # type: ignore[attr-defined]

        value, grad = mx.value_and_grad(loss)(mx.zeros(pairs.reference.shape))
        assert mx.isfinite(value) and mx.isfinite(grad).all()
