"""Decoder blocks in closed form against the models' own code: losses and every gradient."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from forgellm.engines.adapter import LoraSettings
from forgellm.engines.torch.block import use_closed_forms
from forgellm.engines.torch.load import load_model
from forgellm.engines.torch.lora import add_lora, lora_layers
from forgellm.engines.torch.scoring import loss_sum
from forgellm.engines.torch.train import TorchTrainEngine
from forgellm.schema.recipe import Recipe
from forgellm.training.estimate import IN_CLOSED_FORM
from tiny_model import build_tiny_model, random_batch

CPU = torch.device("cpu")
BATCH = random_batch([[9, 14, 7], [17, 3, 10]], padding=2)
UNEVEN = random_batch([[5, 9], [14], [1, 13]], padding=2)


def loss_and_gradients(
    folder: Path, is_full: bool, in_closed_form: bool, settings: LoraSettings
) -> tuple[int, float, dict[str, torch.Tensor]]:
    model = load_model(folder, torch.float32, CPU)
    if not is_full:
        add_lora(model, settings, seed=0)
        generator = torch.Generator().manual_seed(1)
        for layer in lora_layers(model).values():  # zero would hide the gradients of A
            torch.nn.init.normal_(layer.lora_b, std=0.1, generator=generator)
    model.train()
    count = use_closed_forms(model) if in_closed_form else 0
    loss = loss_sum(model, BATCH, CPU, torch.float32)
    loss.backward()
    trained = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return count, loss.item(), trained


@pytest.mark.parametrize("is_full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("architecture", sorted(IN_CLOSED_FORM))
def test_closed_forms_equal_the_models_own_code(
    tmp_path: Path, architecture: str, is_full: bool
) -> None:
    folder = build_tiny_model(tmp_path, architecture)
    settings = LoraSettings(rank=4, alpha=8)
    _, plain_loss, plain = loss_and_gradients(folder, is_full, False, settings)
    count, loss, gradients = loss_and_gradients(folder, is_full, True, settings)
    assert count == 2
    assert loss == pytest.approx(plain_loss, rel=1e-6)
    assert gradients.keys() == plain.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("fine_tune_type", ["lora", "full"])
def test_gradient_checkpointing_keeps_a_blocks_input_alone(
    tmp_path: Path, fine_tune_type: str
) -> None:
    folder = build_tiny_model(tmp_path)
    kept = []
    for grad_checkpoint in (False, True):
        fields = {"fine_tune_type": fine_tune_type, "grad_checkpoint": grad_checkpoint}
        recipe = Recipe(model_name="m", dataset="d", dtype="float32", **fields)
        engine = TorchTrainEngine(recipe.resolved(), folder)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=sizes: sizes.append(tensor.numel()) or tensor,
            lambda tensor: tensor,
        ):
            engine._sums(BATCH)
        kept.append(sum(sizes))
    assert kept[1] < 0.3 * kept[0]


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3"])
def test_blocks_of_another_kind_keep_their_own_code(tmp_path: Path, architecture: str) -> None:
    model = load_model(build_tiny_model(tmp_path, architecture), torch.float32, CPU)
    assert use_closed_forms(model.train()) == 0


def test_a_block_that_does_more_than_its_parts_say_keeps_its_own_code(tmp_path: Path) -> None:
    model = load_model(build_tiny_model(tmp_path), torch.float32, CPU).train()
    changed = model.get_decoder().layers[1]
    own = changed.forward
    changed.forward = lambda *args, **kwargs: own(*args, **kwargs) * 1.01
    assert use_closed_forms(model) == 1


@pytest.mark.parametrize(
    "settings", [LoraSettings(4, 8, dropout=0.1), LoraSettings(4, 8, dora=True)]
)
def test_dropout_and_dora_keep_their_own_code(tmp_path: Path, settings: LoraSettings) -> None:
    model = load_model(build_tiny_model(tmp_path), torch.float32, CPU)
    add_lora(model, settings, seed=0)
    assert use_closed_forms(model.train()) == 0


def test_rows_shared_out_over_threads_train_as_rows_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build_tiny_model(tmp_path)

    def losses(num_cores: int) -> list[float]:
        monkeypatch.setattr(torch, "get_num_threads", lambda: num_cores)
        recipe = Recipe(model_name="m", dataset="d", dtype="float32", learning_rate=0.1)
        engine = TorchTrainEngine(recipe.resolved(), folder)
        found = []
        for _ in range(3):
            for batch, is_last in ((BATCH, False), (UNEVEN, True)):
                engine.step(batch, 0.1, update=is_last)
            found.append(engine.read_metrics().training_loss)
        return [*found, engine.validation_loss([UNEVEN], lambda: False)]

    shared = losses(3)
    assert shared == losses(3)
    assert shared == pytest.approx(losses(1), rel=1e-5)
    assert shared[0] > shared[2] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_was_copied_of_a_file_counts_no_longer(tmp_path: Path) -> None:
    # Large: each look at a weight that was not copied brings 64 kB with it.
    folder = build_tiny_model(tmp_path / "m", intermediate_size=8192)
    recipe = Recipe(model_name="m", dataset="d", dtype="float32")
    engine = TorchTrainEngine(recipe.resolved(), folder)
    resident = is_file = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):
            is_file = rest.endswith(str(folder / "model.safetensors"))
        elif is_file and name == "Rss:":
            resident += int(rest.split()[0]) * 1024
    assert resident < (folder / "model.safetensors").stat().st_size / 2
    engine.step(BATCH, 0.1, update=True)
