"""What trainings share: the schedule, the order of the text, and a state that is the same after it was read."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from befit.errors import RunConflict
from befit.lm.training import (
    Checkpoint,
    Learner,
    adam,
    batch_rows,
    checksum,
    claim,
    learning_rate,
    restore,
    sampled_checksum,
    training_state,
)


def weights(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes: dict[str, tuple[int, ...]] = {"matrix": (4, 3), "vector": (5,), "other": (2, 2)}
    return {name: torch.randn(size, generator=generator).requires_grad_() for name, size in sizes.items()}


def train(own: dict[str, Tensor], optimizer: torch.optim.AdamW, steps: range) -> None:
    for step in steps:
        for name, weight in own.items():
            weight.grad = (weight.detach() - step) * len(name)
        optimizer.step()


def test_every_pass_takes_every_sequence_once_in_its_own_order() -> None:
    places = [row for step in range(15) for row in batch_rows(step, 4, 10, seed=0)]
    passes = [places[i : i + 10] for i in range(0, 60, 10)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert len(set(map(tuple, passes))) == 6
    assert places != [row for step in range(15) for row in batch_rows(step, 4, 10, seed=1)]
    assert sorted(batch_rows(0, 7, 3, seed=0)[:6]) == [0, 0, 1, 1, 2, 2]


def test_the_learning_rate_rises_then_falls_to_a_tenth() -> None:
    rates = [learning_rate(step, 100, peak=2.0, warmup=0.2) for step in range(100)]
    assert rates[:20] == pytest.approx([2 * (i + 1) / 20 for i in range(20)])
    assert rates[20] == 2.0 and rates[60] == pytest.approx(1.1) and rates[99] == pytest.approx(0.2, abs=2e-3)
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert learning_rate(0, 1, peak=3, warmup=1) == learning_rate(0, 1, peak=3, warmup=0) == 3


def test_only_matrices_decay() -> None:
    own = weights()
    before = {name: weight.detach().clone() for name, weight in own.items()}
    optimizer = adam(own, lr=0.1, weight_decay=0.5, undecayed={"other"})
    for weight in own.values():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert torch.allclose(own["matrix"], 0.95 * before["matrix"])
    assert torch.equal(own["vector"], before["vector"]) and torch.equal(own["other"], before["other"])


def test_a_restored_training_goes_on_bit_by_bit(tmp_path: Path) -> None:
    whole, parts = weights(), weights()
    optimizer = adam(whole, lr=0.1, weight_decay=0.1)
    train(whole, optimizer, range(7))
    first = adam(parts, lr=0.1, weight_decay=0.1)
    train(parts, first, range(4))
    checkpoint = Checkpoint(tmp_path / "checkpoint")
    assert checkpoint.read() is None
    checkpoint.write(training_state(parts, first))
    other = weights(seed=1)
    second = adam(other, lr=0.1, weight_decay=0.1)
    state = checkpoint.read()
    assert state is not None
    restore(state, other, second, 4)
    train(other, second, range(4, 7))
    assert all(torch.equal(whole[name], other[name]) for name in whole)


def test_a_learner_steps_as_its_optimizer_and_untouched_weights_have_no_gradient() -> None:
    plain, own = weights(), weights()
    optimizer, learner = adam(plain, lr=1.0), Learner(own, adam(own, lr=1.0))
    for step in range(3):
        for some in (plain, own):
            ((some["matrix"] * (step + 1)).square().sum() + some["vector"].sum()).backward()
            some["matrix"].sum().backward()  # another micro-batch
        plain["other"].grad = torch.zeros(2, 2)
        torch.nn.utils.clip_grad_norm_(plain.values(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        optimizer.step()
        optimizer.zero_grad()
        learner.step(lr=0.01, clip=0.5)
        assert not learner.gradient.any()
    assert all(torch.allclose(plain[name], own[name], atol=1e-7) for name in plain)
    assert not torch.equal(own["vector"], weights()["vector"]) and torch.equal(own["other"], weights()["other"])
    assert {key for key in learner.state() if "other" in key} == {"weight other", "exp_avg other", "exp_avg_sq other"}


def test_a_team_steps_along_its_mean_gradient() -> None:
    alone, team = weights(), weights()

    def third(gradient: Tensor) -> None:
        gradient.div_(3)

    one, other = Learner(alone, adam(alone, lr=1.0)), Learner(team, adam(team, lr=1.0))
    one.gradient.fill_(1e-9)
    other.gradient.fill_(3e-9)
    one.step(lr=0.1)
    other.step(lr=0.1, average=third)
    assert all(torch.equal(alone[name], team[name]) for name in alone)


def test_a_checkpoint_is_swept_and_removed(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint")
    checkpoint.sweep()
    checkpoint.write({"a": torch.ones(2)})
    (checkpoint.folder / ".half").write_bytes(b"rest of a kill")
    checkpoint.sweep()
    assert [file.name for file in checkpoint.folder.iterdir()] == ["state.safetensors"]
    checkpoint.file.write_bytes(b"garbage")
    assert checkpoint.read() is None
    checkpoint.remove()
    checkpoint.remove()
    assert not checkpoint.folder.exists()


def test_a_folder_belongs_to_one_training(tmp_path: Path) -> None:
    claim(tmp_path, "one", "another one")
    claim(tmp_path, "one", "another one")
    with pytest.raises(RunConflict, match="holds another one; give another folder"):
        claim(tmp_path, "two", "another one")


def test_checksums_tell_weights_and_text_apart() -> None:
    assert sampled_checksum(weights().items()) == sampled_checksum(weights().items())
    assert sampled_checksum(weights().items()) != sampled_checksum(weights(seed=1).items())
    renamed = {name.upper(): weight for name, weight in weights().items()}
    assert sampled_checksum(weights().items()) != sampled_checksum(renamed.items())
    tokens = torch.arange(12).view(3, 4)
    assert checksum(tokens) == checksum(tokens.clone()) != checksum(tokens + 1)
