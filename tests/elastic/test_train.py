"""Elastic training: gradients against extracted networks, every budget's loss, the router's cost, killed and resumed runs."""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.elastic.tiny_nested import nested
from torch import Tensor

import members
import tiny
from befit.arch.member import Member, cut_shape
from befit.elastic.curriculum import LARGER_FIRST, ElasticTraining, Stage
from befit.elastic.nested import Nested
from befit.elastic.record import Trained
from befit.elastic.train import Predictor, draw_sandwich, predict, train
from befit.errors import BadData, BefitError, RunConflict
from befit.lm import precision
from befit.lm.distill import head_kl
from befit.lm.extract import member_model
from befit.progress import Item

CONFIG = ElasticTraining(
    stages=(
        Stage(tokens=8 * 32, sequence=8, batch=4),
        Stage(tokens=4 * 24, sequence=12, batch=2, weights=LARGER_FIRST),
    ),
    lr=3e-3,
    micro_batches=2,
    router_every=2,
    gains=True,
    tensorboard=False,
    checkpoint_seconds=0,
    seed=3,
)
"""Twelve steps, of which the last three are settled."""
TEXT = [tiny.tokens(10, 8, 48), tiny.tokens(7, 12, 48, seed=1)]


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


def state(own: Nested) -> dict[str, Tensor]:
    """Everything that training changes."""
    modules = {"router": own.router} | ({"gains": own.gains} if own.gains else {})
    found = dict(own.weights)
    for name, module in modules.items():
        found |= {f"{name} {key}": tensor.clone() for key, tensor in module.state_dict().items()}
    return found


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def answer(own: Nested, weights: dict[str, Tensor], share: float, tokens: Tensor) -> Predictor:
    with torch.no_grad():
        return predict(own.net, own.folded(weights, share), own.member(share), tokens)


def losses(own: Nested, teacher: dict[str, Tensor], tokens: Tensor) -> dict[float, float]:
    """KL of every budget's member from the parent."""
    parent = answer(replace(own, gains=None), teacher, 1.0, tokens)
    return {t.share: float(head_kl(parent, answer(own, own.weights, t.share, tokens))) for t in own.targets}


def plain_kl(parent: Any, child: Any, tokens: Tensor) -> Tensor:
    """KL(parent || child) of two transformers models, mean over tokens, with gradient to the child."""
    theirs, ours = (model(tokens, use_cache=False).logits.log_softmax(-1) for model in (parent, child))
    return F.kl_div(ours, theirs.detach(), log_target=True, reduction="none").sum(-1).mean()


@pytest.mark.parametrize("kind", ["hybrid", "dense"])
def test_gradients_are_those_of_the_extracted_network_and_zero_outside(kind: str) -> None:
    own, tokens, draw = nested(kind), tiny.tokens(2, 12, 48), Random(5)
    teacher = own.weights
    leaves = {name: (1.1 * weight).requires_grad_() for name, weight in teacher.items()}
    for _ in range(3):
        member = members.member_of(draw, own.net.shape)
        for leaf in leaves.values():
            leaf.grad = torch.zeros_like(leaf)
        parent = answer(own, teacher, 1.0, tokens)
        head_kl(parent, predict(own.net, leaves, member, tokens)).backward()
        detached = {name: leaf.detach() for name, leaf in leaves.items()}
        model = members.plain(own.config, member, members.by_index(own.config, member, detached))
        model.requires_grad_(True)
        plain_kl(members.plain(own.config, own.space.whole, teacher), model, tokens).backward()
        gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        inside = members.by_index(own.config, member, gradients)
        true = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        assert set(true) <= set(inside)
        for name, gradient in true.items():
            torch.testing.assert_close(inside[name], gradient, rtol=1e-4, atol=1e-6)
        within, total = (sum(float(g.abs().sum()) for g in some.values()) for some in (inside, gradients))
        assert total == pytest.approx(within, rel=1e-6) and total > 0


@pytest.mark.parametrize("mode", ["sampled", "sandwich"])
@pytest.mark.parametrize("kind", ["hybrid", "dense"])
def test_every_budget_loses_less_than_its_untrained_cut(kind: str, mode: Any, tmp_path: Path) -> None:
    own, untrained = nested(kind, gains=True), nested(kind)
    teacher = dict(own.weights)
    before = {name: weight.clone() for name, weight in teacher.items()}
    stages = (Stage(tokens=16 * 32, sequence=8, batch=4), Stage(tokens=8 * 24, sequence=12, batch=2))
    result = train(own, teacher, TEXT, replace(CONFIG, stages=stages, mode=mode, checkpoint_seconds=60), tmp_path)
    fixed = replace(untrained, chosen={t.share: own.member(t.share) for t in own.targets})
    start, end = losses(fixed, teacher, TEXT[0]), losses(own, teacher, TEXT[0])
    assert start[1.0] == 0 and end[1.0] < 0.5 * start[0.75]
    assert end[0.75] < 0.7 * start[0.75] and end[0.5] < 0.7 * start[0.5]
    assert equal(teacher, before)
    assert own.gains is not None and not (own.gains.values == 1).flatten(1).all(1).any()
    assert all(own.weights[name] is not teacher[name] for name in teacher)
    assert (result.steps, result.tokens) == (24, 16 * 32 + 8 * 24)
    # What was trained last is what will be cut, and it is on budget.
    last = {one.share: one.member for one in result.history[-3:]}
    assert last == {t.share: own.member(t.share) for t in own.targets}
    for target in own.targets:
        assert 0.99 * target.limit <= own.cost(own.member(target.share)) <= target.limit


def test_the_trained_member_is_the_extracted_one(tmp_path: Path) -> None:
    own = nested(gains=True)
    teacher = dict(own.weights)
    train(own, teacher, TEXT, CONFIG, tmp_path)
    parent = member_model(own.config, own.net, teacher, own.space.whole)
    found = losses(own, teacher, TEXT[1])
    for share, kl in found.items():
        model = member_model(own.config, own.net, own.folded(own.weights, share), own.member(share))
        assert plain_kl(parent, model, TEXT[1]).item() == pytest.approx(kl, abs=1e-5)


def test_the_first_losses_are_those_of_plain_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_cpu_multiplies_bf16", lambda: False)
    own, config = nested(shares=(1.0, 0.5)), replace(CONFIG, stages=(Stage(tokens=80, sequence=8, batch=10),))
    teacher = dict(own.weights)
    for name, weight in own.weights.items():  # The nested model need not begin as the parent.
        own.weights[name] = 0.9 * weight
    parent = member_model(own.config, own.net, teacher, own.space.whole)
    models = {s: member_model(own.config, own.net, own.weights, own.member(s)) for s in (1.0, 0.5)}
    config = replace(config, micro_batches=1, mode="sandwich", settle=1)
    result = train(own, teacher, TEXT[:1], config, tmp_path)
    largest, smallest = result.losses
    assert (largest.share, smallest.share) == (1.0, 0.5)
    assert largest.kl == pytest.approx(plain_kl(parent, models[1.0], TEXT[0]).item(), abs=1e-5)
    assert smallest.kl == pytest.approx(plain_kl(models[1.0], models[0.5], TEXT[0]).item(), abs=1e-5)
    assert result.routed == ()


@pytest.mark.parametrize("change", [{"mode": "sampled"}, {"mode": "sandwich", "recompute": True}], ids=str)
def test_an_interrupted_training_ends_with_the_same_weights_and_router(change: Any, tmp_path: Path) -> None:
    whole, parts, config = nested(gains=True), nested(gains=True), replace(CONFIG, **change)
    expected = train(whole, dict(whole.weights), TEXT, config, tmp_path / "whole")
    before = state(parts)
    for steps in (4, 1, 0, 5):
        with pytest.raises(Killed):
            train(parts, dict(parts.weights), TEXT, config, tmp_path / "parts", killed_after(steps))
        assert equal(state(parts), before)
    found = train(parts, dict(parts.weights), TEXT, config, tmp_path / "parts")
    assert equal(state(parts), state(whole)) and not equal(state(parts), before)
    assert replace(found, seconds=0) == replace(expected, seconds=0) and len(found.routed) == 4
    names = ["key.json", "trained.json", "trained.safetensors"]
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == names


def test_a_second_call_only_reads(tmp_path: Path) -> None:
    first, second = nested(shares=(0.5,)), nested(shares=(0.5,))
    for own in (first, second):
        for name, weight in own.weights.items():
            own.weights[name] = weight.bfloat16()
    teacher = dict(first.weights)
    config = replace(CONFIG, stages=CONFIG.stages[:1])
    expected = train(first, teacher, TEXT[:1], config, tmp_path)
    found = train(second, teacher, TEXT[:1], replace(config, checkpoint_seconds=9), tmp_path, killed_after(0))
    assert found == expected and equal(state(first), state(second))
    assert {weight.dtype for weight in first.weights.values()} == {torch.bfloat16}


def test_the_router_learns_to_cost_what_it_may(tmp_path: Path) -> None:
    own = nested("dense", shares=(1.0, 0.5))
    with torch.no_grad():
        for router in own.router.routers:
            last: Any = router.get_submodule("2")
            last.bias[0] = 12.0  # the whole, at every budget
    before, teacher = own.cost(own.space.member(own.router.choose(0.5))), dict(own.weights)
    config = replace(
        CONFIG, stages=(Stage(tokens=40 * 8, sequence=8, batch=1),), micro_batches=1, router_every=1, settle=0
    )
    config = replace(config, checkpoint_seconds=60)
    result = train(own, teacher, TEXT[:1], replace(config, router_lr=0.2, budget_weight=20), tmp_path)
    limit = own.limit(0.5)
    assert before > 1.8 * limit
    early, late = ([one.cost for one in part] for part in (result.routed[:4], result.routed[-12:]))
    assert sum(early) / 4 > 1.4 and abs(sum(late) / 12 - 1) < 0.2
    assert abs(own.cost(own.space.member(own.router.choose(0.5))) / limit - 1) < 0.4
    assert len(result.routed) == 40 and {one.share for one in result.routed} == {0.5}


def test_the_router_hears_of_quality(tmp_path: Path) -> None:
    """Without a budget, more is better: the choice gets wider."""
    own = nested("dense", shares=(0.5,))
    before = own.cost(own.space.member(own.router.choose(0.5)))
    config = replace(
        CONFIG, stages=(Stage(tokens=20 * 16, sequence=8, batch=2),), micro_batches=1, router_every=1, settle=0
    )
    config = replace(config, checkpoint_seconds=60)
    train(own, dict(own.weights), TEXT[:1], replace(config, router_lr=0.3, budget_weight=0, lr=1e-9), tmp_path)
    assert own.cost(own.space.member(own.router.choose(0.5))) > 1.3 * before


def test_neighbours_are_trained_until_the_router_settles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, trained = nested(shares=(0.75, 0.5)), list[Member]()

    def spy(net: Any, weights: Any, member: Member, *args: Any, **options: Any) -> Predictor:
        trained.append(member)
        return predict(net, weights, member, *args, **options)

    monkeypatch.setattr("befit.elastic.train.predict", spy)
    config = replace(CONFIG, stages=(Stage(tokens=8 * 32, sequence=8, batch=4),), settle=0.5, weight_decay=0.1)
    result = train(own, dict(own.weights), TEXT[:1], config, tmp_path)
    exploring, settled = trained[:8], trained[8:]
    assert len(settled) == 8 and {loss.step for loss in result.losses[8:]} == {4, 5, 6, 7}
    assert set(settled) == {own.member(0.75), own.member(0.5)}
    assert len(set(exploring)) > 3
    for member, loss in zip(exploring, result.losses, strict=False):
        limit = own.limit(loss.share)
        assert 0.99 * limit <= own.cost(member) <= limit


def test_written_members_stay_and_leave_the_router_alone(tmp_path: Path) -> None:
    own = nested()
    fixed = {0.75: own.space.smallest, 0.5: own.space.smallest}
    own = replace(own, chosen=fixed)
    router = copy.deepcopy(own.router.state_dict())
    result = train(own, dict(own.weights), TEXT, CONFIG, tmp_path)
    assert all(one.member == fixed.get(one.share, own.space.whole) for one in result.history) and result.routed == ()
    assert all(torch.equal(tensor, router[name]) for name, tensor in own.router.state_dict().items())


def test_budgets_are_taken_as_the_stage_says(tmp_path: Path) -> None:
    own = replace(nested(shares=(1.0, 0.5)), chosen={0.5: nested().space.smallest})
    stages = (
        Stage(tokens=4 * 32, sequence=8, batch=4, weights=(1, 0)),
        Stage(tokens=4 * 96, sequence=12, batch=8, weights=(1, 3)),
    )
    result = train(own, dict(own.weights), TEXT, replace(CONFIG, stages=stages, micro_batches=4), tmp_path)
    assert [(loss.step, loss.share) for loss in result.losses[:16]] == [(i // 4, 1.0) for i in range(16)]
    assert len(result.curve(1.0)) == 16 + 4 and len(result.curve(0.5)) == 12
    assert cut_shape(own.net.shape, own.member(0.5)).hidden < own.net.shape.hidden


def test_a_sandwich_has_both_ends() -> None:
    draw = torch.Generator().manual_seed(0)
    found = [draw_sandwich((0.2, 0.3, 0.0, 0.3, 0.2), 1, draw) for _ in range(50)]
    assert {tuple(one) for one in found} == {(0, 1, 4), (0, 3, 4)}
    assert draw_sandwich((0.5, 0.5), 2, draw) == [0, 1] and draw_sandwich((1.0,), 1, draw) == [0]
    assert draw_sandwich((0.2, 0.3, 0.5), 5, draw) == [0, 1, 2]


def test_a_folder_belongs_to_one_training(tmp_path: Path) -> None:
    own, config = nested(shares=(0.5,)), replace(CONFIG, stages=CONFIG.stages[:1])
    teacher = dict(own.weights)
    with pytest.raises(Killed):
        train(own, teacher, TEXT[:1], config, tmp_path, killed_after(0))
    stranger = {name: weight + 1 for name, weight in teacher.items()}
    calls: list[Callable[[], Trained]] = [
        lambda: train(own, teacher, TEXT[:1], replace(config, lr=1.0), tmp_path),
        lambda: train(own, teacher, [TEXT[0] + 1], config, tmp_path),
        lambda: train(own, stranger, TEXT[:1], config, tmp_path),
        lambda: train(replace(own, weights=stranger), teacher, TEXT[:1], config, tmp_path),
        lambda: train(replace(own, chosen={0.5: own.space.smallest}), teacher, TEXT[:1], config, tmp_path),
    ]
    for call in calls:
        with pytest.raises(RunConflict, match="another nested model"):
            call()


def test_a_loss_that_is_no_number_is_told_and_not_kept(tmp_path: Path) -> None:
    own = nested(shares=(1.0,))
    teacher = dict(own.weights)
    own.weights["model.embeddings.weight"] = own.weights["model.embeddings.weight"] * float("nan")
    with pytest.raises(BefitError, match=r"diverged: the loss of budget 100% in step 0 of 12 .*lower learning rate"):
        train(own, teacher, TEXT, CONFIG, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["key.json"]


def test_text_must_be_as_long_as_the_context(tmp_path: Path) -> None:
    own = nested(shares=(1.0,))
    for rows in (tiny.tokens(4, 7, 48), torch.zeros(0, 8, dtype=torch.long)):
        with pytest.raises(BadData, match=r"stage 0 needs token ids \(N, 8\).*more text, or shorter sequences"):
            train(own, own.weights, [rows, TEXT[1]], CONFIG, tmp_path)
    with pytest.raises(ValueError, match="2 stages need as many tensors"):
        train(own, own.weights, TEXT[:1], CONFIG, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning",  # torch's tracer warns of itself
    "ignore:The .grad attribute of a Tensor:UserWarning",
    "ignore:TensorFloat32 tensor cores:UserWarning",  # what is computed in fp32 is meant to be
)
@pytest.mark.parametrize("compile_", [False, True], ids=["plain", "compiled"])
def test_it_trains_on_a_gpu(compile_: bool, tmp_path: Path) -> None:
    own = nested(gains=True)
    for name, weight in own.weights.items():
        own.weights[name] = weight.to("cuda", torch.bfloat16)
    teacher = dict(own.weights)
    start = losses(nested(), nested().weights, TEXT[0])
    train(own, teacher, TEXT, replace(CONFIG, compile=compile_, settle=0.5), tmp_path)
    assert {(w.dtype, w.device.type) for w in own.weights.values()} == {(torch.bfloat16, "cuda")}
    for name, weight in own.weights.items():
        own.weights[name] = weight.float().cpu()
    found = losses(own, {name: weight.float().cpu() for name, weight in teacher.items()}, TEXT[0])
    assert found[0.5] < start[0.5]
