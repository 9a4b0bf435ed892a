"""Healing: the loss against a plain one, the child against a killed and resumed one, the files it leaves."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from tests import tiny
from torch import Tensor

from befit.arch.decoder import Block, DecoderArch, NoOp
from befit.errors import BadData, BefitError, DiskFull, RunConflict
from befit.lm import precision
from befit.lm.child import adopt, arch_of, build, config_for
from befit.lm.modeling_befit import BefitForCausalLM
from befit.lm.quality import evaluate
from befit.progress import Item
from befit.puzzle.heal import HealConfig, heal
from befit.rundir import read_tensors

CONFIG = HealConfig(tokens=12 * 4 * 16, batch=4, lr=3e-3, checkpoint_seconds=0, seed=3)
"""Twelve steps on `tiny.tokens(10, 16)`: almost five passes over the text."""


def dropped(parent: BefitForCausalLM, layer: int = 1) -> BefitForCausalLM:
    """A child without one layer, sharing all other weights with its parent."""
    blocks = list(arch_of(parent.config).blocks)
    blocks[layer] = Block(attention=NoOp(), ffn=NoOp())
    child = build(config_for(parent.config, DecoderArch(blocks=tuple(blocks))), dtype=parent.dtype)
    adopt(child, {n: t for n, t in parent.state_dict().items() if not n.startswith(f"model.layers.{layer}.")})
    return child


def weights(model: BefitForCausalLM) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Killed(Exception):
    pass


def killed_after(steps: int) -> Callable[..., Iterator[Any]]:
    """A progress that ends the loop with an error when it has seen so many steps."""

    def progress(items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
        for number, item in enumerate(items):
            if number == steps:
                raise Killed
            yield item

    return progress


@pytest.mark.parametrize("family", tiny.ALL)
def test_a_child_without_a_layer_gets_closer_to_its_parent(family: str, tmp_path: Path) -> None:
    parent, blocks = tiny.parent(family, layers=3), tiny.tokens(10, 16)
    before, child = weights(parent), dropped(parent)
    start = evaluate(child, blocks, parent).kl
    result = heal(child, parent, blocks, replace(CONFIG, checkpoint_seconds=60), tmp_path)
    assert evaluate(child, blocks, parent).kl < 0.7 * start
    assert result.kl[0] == pytest.approx(start, rel=0.2) and result.kl[-1] < 0.7 * result.kl[0]
    assert (result.steps, result.tokens, len(result.losses)) == (12, 12 * 4 * 16, 12)
    assert equal(weights(parent), before)
    assert child.dtype == torch.float32 and not child.training
    assert not any(p.requires_grad for p in (*child.parameters(), *parent.parameters()))
    tied = child.lm_head.weight is child.model.embed_tokens.weight
    assert tied == parent.config.tie_word_embeddings


def test_the_first_loss_is_kl_plus_cosine_and_the_first_step_is_adams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_cpu_multiplies_bf16", lambda: False)
    parent, blocks = tiny.parent(layers=2), tiny.tokens(4, 16)
    config = HealConfig(
        tokens=64, batch=4, lr=1e-3, warmup=0, weight_decay=0.1, clip=1e9, kl_weight=0.7, cosine_weight=0.3
    )
    own = tiny.parent(layers=2)
    child, plain = dropped(parent), dropped(own)
    for model in (child, plain):  # The child's weights need not be the parent's.
        adopt(model, {name: 0.9 * weight for name, weight in model.state_dict().items()})
    plain.requires_grad_(True)
    found, true = (
        model(blocks, output_hidden_states=True, use_cache=False) for model in (plain, tiny.original(layers=2))
    )
    logs = found.logits.log_softmax(-1), true.logits.detach().log_softmax(-1)
    kl = F.kl_div(*logs, log_target=True, reduction="none").sum(-1).mean()
    # A row of blocks has layer i's input at place i: place 1 is layer 0's output. Layer 1's output is before the norm.
    x = true.hidden_states[1]
    layer = own.model.layers[1]
    ours, theirs = found.hidden_states[1], [x, layer(x, own.model.begin(x))]
    pairs = zip([ours, ours], theirs, strict=True)
    cosines = torch.stack([1 - F.cosine_similarity(a, b.detach(), dim=-1).mean() for a, b in pairs])
    loss = 0.7 * kl + 0.3 * cosines.mean()
    loss.backward()
    result = heal(child, parent, blocks, config, tmp_path)
    assert result.losses == pytest.approx([loss.item()], abs=1e-6) and result.kl == pytest.approx([kl.item()], abs=1e-6)
    for name, weight in plain.named_parameters():
        decay = 0.1 if weight.ndim > 1 else 0.0
        assert weight.grad is not None
        expected = weight * (1 - 1e-3 * decay) - 1e-3 * weight.grad / (weight.grad.abs() + 1e-8)
        steady = weight.grad.abs() > 1e-5  # where rounding does not decide the sign
        torch.testing.assert_close(weights(child)[name][steady], expected[steady], rtol=0, atol=2e-6)


def test_an_interrupted_healing_ends_with_the_same_weights(tmp_path: Path) -> None:
    parent, blocks = tiny.parent("qwen2", layers=3), tiny.tokens(10, 16)
    whole, parts = dropped(parent), dropped(parent)
    expected = heal(whole, parent, blocks, CONFIG, tmp_path / "whole")
    before = weights(parts)
    for steps in (5, 1, 0, 3):
        with pytest.raises(Killed):
            heal(parts, parent, blocks, CONFIG, tmp_path / "parts", killed_after(steps))
        assert equal(weights(parts), before)
    found = heal(parts, parent, blocks, CONFIG, tmp_path / "parts")
    assert found.losses == expected.losses and found.kl == expected.kl
    assert equal(weights(parts), weights(whole))
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == ["heal.json", "healed.safetensors", "key.json"]


def test_without_a_checkpoint_it_starts_over(tmp_path: Path) -> None:
    parent, blocks = tiny.parent(layers=2), tiny.tokens(10, 16)
    seldom = replace(CONFIG, checkpoint_seconds=1e6)
    whole, parts = dropped(parent), dropped(parent)
    heal(whole, parent, blocks, seldom, tmp_path / "whole")
    with pytest.raises(Killed):
        heal(parts, parent, blocks, seldom, tmp_path / "parts", killed_after(5))
    heal(parts, parent, blocks, seldom, tmp_path / "parts")
    assert equal(weights(parts), weights(whole))


PROGRAM = """
import sys
from pathlib import Path
import torch
from tests import tiny
from tests.puzzle.test_heal import CONFIG, dropped
from befit.puzzle.heal import heal

def progress(items, label, total=None):
    for item in items:
        print(item, flush=True)
        yield item

parent = tiny.parent(layers=3)
heal(dropped(parent), parent, tiny.tokens(10, 16), CONFIG, Path(sys.argv[1]), progress)
"""


def test_a_killed_process_is_continued(tmp_path: Path) -> None:
    parent, blocks = tiny.parent(layers=3), tiny.tokens(10, 16)
    whole, parts = dropped(parent), dropped(parent)
    heal(whole, parent, blocks, CONFIG, tmp_path / "whole")
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "parts")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == 6:
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    seen: list[int] = []

    def progress(items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
        seen.append(total or 0)
        yield from items

    heal(parts, parent, blocks, CONFIG, tmp_path / "parts", progress)
    assert 0 < seen[0] <= 6
    assert equal(weights(parts), weights(whole))


def test_a_second_call_only_reads(tmp_path: Path) -> None:
    parent, blocks = tiny.parent(layers=2).bfloat16(), tiny.tokens(10, 16)
    first, second = dropped(parent), dropped(parent)
    expected = heal(first, parent, blocks, CONFIG, tmp_path)
    assert heal(second, parent, blocks, replace(CONFIG, checkpoint_seconds=9), tmp_path, killed_after(0)) == expected
    assert first.dtype == second.dtype == torch.bfloat16
    assert equal(weights(first), weights(second))
    assert evaluate(second, blocks, parent).kl < evaluate(dropped(parent), blocks, parent).kl


@pytest.mark.parametrize("damage", [b"", b"no tensors at all", None], ids=["empty", "garbage", "cut"])
def test_a_damaged_checkpoint_counts_as_none(damage: bytes | None, tmp_path: Path) -> None:
    parent, blocks = tiny.parent(layers=2), tiny.tokens(10, 16)
    whole, parts = dropped(parent), dropped(parent)
    heal(whole, parent, blocks, CONFIG, tmp_path / "whole")
    with pytest.raises(Killed):
        heal(parts, parent, blocks, CONFIG, tmp_path / "parts", killed_after(3))
    (checkpoint,) = (tmp_path / "parts" / "checkpoint").iterdir()
    checkpoint.write_bytes(checkpoint.read_bytes()[:-9] if damage is None else damage)
    (checkpoint.parent / ".half.written").write_bytes(b"rest of a killed attempt")
    heal(parts, parent, blocks, CONFIG, tmp_path / "parts")
    assert equal(weights(parts), weights(whole))
    assert not checkpoint.parent.exists()


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left (os error 28)")],
    ids=["of the system", "of safetensors"],
)
def test_a_full_disk_is_told_and_costs_nothing(error: Exception, tmp_path: Path, monkeypatch: Any) -> None:
    parent, blocks = tiny.parent(layers=2), tiny.tokens(10, 16)
    whole, parts = dropped(parent), dropped(parent)
    heal(whole, parent, blocks, CONFIG, tmp_path / "whole")
    with pytest.raises(Killed):
        heal(parts, parent, blocks, CONFIG, tmp_path / "parts", killed_after(4))
    checkpoint = tmp_path / "parts" / "checkpoint" / "state.safetensors"
    kept = checkpoint.read_bytes()

    def full(tensors: dict[str, Tensor], path: Path) -> None:
        Path(path).write_bytes(b"as much as there was room for")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(DiskFull, match="no room on the disk"):
            heal(parts, parent, blocks, CONFIG, tmp_path / "parts")
    assert checkpoint.read_bytes() == kept
    heal(parts, parent, blocks, CONFIG, tmp_path / "parts")
    assert equal(weights(parts), weights(whole))


def test_a_folder_belongs_to_one_healing(tmp_path: Path) -> None:
    parent, blocks = tiny.parent(layers=2), tiny.tokens(10, 16)
    config = replace(CONFIG, tokens=64)
    heal(dropped(parent), parent, blocks, config, tmp_path)
    stranger = tiny.parent(layers=2, seed=1)
    for other in (
        lambda: heal(dropped(parent), parent, blocks, replace(config, lr=1e-4), tmp_path),
        lambda: heal(dropped(parent), parent, tiny.tokens(10, 16, seed=1), config, tmp_path),
        lambda: heal(dropped(parent, 0), parent, blocks, config, tmp_path),
        lambda: heal(dropped(stranger), parent, blocks, config, tmp_path),
        lambda: heal(dropped(parent), stranger, blocks, config, tmp_path),
    ):
        with pytest.raises(RunConflict, match="another"):
            other()


def test_a_loss_that_is_no_number_is_told_and_not_kept(tmp_path: Path) -> None:
    parent, blocks = tiny.parent(layers=2), tiny.tokens(10, 16)
    child = dropped(parent)
    with torch.no_grad():
        child.get_parameter("model.norm.weight")[0] = float("nan")
    with pytest.raises(BefitError, match=r"diverged: the loss of step 0 of 12 is no number.*lower learning rate"):
        heal(child, parent, blocks, CONFIG, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["key.json"]


def test_a_configuration_out_of_range_is_refused() -> None:
    wrong: Any
    for wrong in ({"tokens": 0}, {"batch": -1}, {"lr": 0.0}, {"temperature": 0.0}, {"clip": float("nan")}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be above 0"):
            HealConfig(**wrong)
    with pytest.raises(ValueError, match="kl_weight must be 0 or more"):
        HealConfig(kl_weight=-1)
    with pytest.raises(ValueError, match="share of the steps"):
        HealConfig(warmup=1.5)


def test_healing_needs_text(tmp_path: Path) -> None:
    parent = tiny.parent(layers=2)
    with pytest.raises(BadData, match="at least one sequence"):
        heal(dropped(parent), parent, torch.zeros(0, 16, dtype=torch.long), CONFIG, tmp_path)


@pytest.mark.gpu
def test_a_child_on_a_gpu_is_healed_there(tmp_path: Path) -> None:
    parent, blocks = tiny.parent(layers=3), tiny.tokens(10, 16)
    child = dropped(parent)
    for model in (child, parent):
        torch.nn.Module.to(model, "cuda", torch.bfloat16)
    start = evaluate(child, blocks, parent).kl
    heal(child, parent, blocks, CONFIG, tmp_path)
    assert child.device.type == "cuda" and child.dtype == torch.bfloat16
    assert evaluate(child, blocks, parent).kl < 0.7 * start
    assert read_tensors(tmp_path / "healed.safetensors")["model.norm.weight"].dtype == torch.bfloat16
