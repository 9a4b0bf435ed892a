"""The router: its prior is the uniform choice, its samples are hard with soft gradients, its costs are exact."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.elastic.shapes import DENSE, HYBRID, WITHOUT_FFN, hybrid
from torch import Tensor

from befit.arch.member import Member, cut_shape
from befit.cost.count import count
from befit.cost.workload import Workload
from befit.elastic.budgets import price_of, uniform_choice, uniform_ratio
from befit.elastic.router import Router, Sample, cost_of, gates, noise
from befit.elastic.space import default_space
from befit.errors import BadBudget

SHARES = (1.0, 0.75, 0.5)
HYBRID_SPACE = default_space(HYBRID, (5, 2, 9, 0, 7, 3))
LAYERWISE = default_space(HYBRID, (5, 2, 9, 0, 7, 3), ffn_per_layer=True)
SPACES = [HYBRID_SPACE, default_space(DENSE, (3, 1, 0)), default_space(WITHOUT_FFN, (0, 3)), LAYERWISE]


def trained(space_index: int = 0, seed: int = 0) -> Router:
    """A router with random weights in place of the zeros it begins with."""
    router = Router(SPACES[space_index], SHARES, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return router


@pytest.mark.parametrize("space", SPACES)
def test_an_untrained_router_is_the_uniform_choice(space) -> None:
    price = price_of(space.shape, "memory_bytes", Workload(prompt=512))
    router = Router(space, SHARES, price=price)
    for share in SHARES:
        ratio = uniform_ratio(space, price, share * price(space.whole))
        assert router.choose(share) == uniform_choice(space, ratio)
        assert price(space.member(router.choose(share))) <= share * price(space.whole)
    assert 0.5 < uniform_ratio(space, price, 0.5 * price(space.whole)) < 0.9


def test_a_share_of_one_is_always_the_parent() -> None:
    router = trained()
    assert router.choose(1.0) == dict.fromkeys(HYBRID_SPACE.axes, 0)
    sample = router.sample(1.0, temperature=1.0, generator=noise(0, 0))
    assert HYBRID_SPACE.member(sample.choice) == HYBRID_SPACE.whole
    assert all(soft[0] == 1 and soft.sum() == 1 and not soft.requires_grad for soft in sample.soft.values())


@given(st.floats(0.1, 1), st.integers(0, 20))
def test_the_budget_is_interpolated_between_trained_shares(share: float, seed: int) -> None:
    router = trained(seed=seed)
    hats = router.hats(share)
    assert sum(hats) == pytest.approx(1) and min(hats) >= 0 and sum(hat > 0 for hat in hats) <= 2
    inside = min(max(share, 0.5), 1.0)
    assert sum(hat * own for hat, own in zip(hats, (0.5, 0.75, 1.0), strict=True)) == pytest.approx(inside)
    for low, high in pairwise((0.5, 0.75, 1.0)):  # inside a stretch the first layer's input is linear in the share
        if low < share < high:
            part = (share - low) / (high - low)
            start, end = (torch.tensor(router.hats(end)) for end in (low, high))
            torch.testing.assert_close(torch.tensor(hats), torch.lerp(start, end, part))
    assert router.prior(0.3) == router.prior(0.5)


def test_choices_between_trained_budgets_cost_what_lies_between() -> None:
    router, price = Router(HYBRID_SPACE, SHARES), price_of(HYBRID, "params", Workload())
    costs = [
        price(HYBRID_SPACE.member(router.choose(share))) for share in (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.9, 1)
    ]
    assert costs == sorted(costs) and len(set(costs)) > 5


def test_samples_are_hard_with_the_gradient_of_the_softmax() -> None:
    router = trained()
    sample, again = (router.sample(0.6, temperature=0.7, generator=noise(3, 8)) for _ in range(2))
    generator = noise(3, 8)
    for axis, logits in router.scores(0.6).items():
        soft = sample.soft[axis]
        assert torch.equal(soft.detach(), F.one_hot(torch.tensor(sample.choice[axis]), len(logits)).float())
        assert torch.equal(soft, again.soft[axis])
        uniform = torch.rand(len(logits), generator=generator, dtype=torch.float64)
        expected = F.softmax(logits / 0.7 - (-uniform.log()).log().float(), dim=0)  # cold: less noise, too
        assert int(expected.argmax()) == sample.choice[axis]
        weight = torch.arange(len(logits)) ** 2.0
        wanted = torch.autograd.grad((expected * weight).sum(), list(router.parameters()), allow_unused=True)
        got = torch.autograd.grad((soft * weight).sum(), list(router.parameters()), allow_unused=True)
        for a, b in zip(wanted, got, strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                torch.testing.assert_close(b, a)


def test_noise_depends_on_seed_and_step_and_samples_every_option() -> None:
    router = Router(HYBRID_SPACE, SHARES)
    drawn = [router.sample(0.5, temperature=1.0, generator=noise(0, step)).choice for step in range(300)]
    assert drawn[:5] == [router.sample(0.5, temperature=1.0, generator=noise(0, step)).choice for step in range(5)]
    assert drawn[:5] != [router.sample(0.5, temperature=1.0, generator=noise(1, step)).choice for step in range(5)]
    counts = torch.bincount(torch.tensor([choice["ffn"] for choice in drawn]), minlength=len(HYBRID_SPACE.ffn))
    expected = 300 * F.softmax(router.scores(0.5)["ffn"], dim=0)  # argmax of logits plus Gumbel noise is such a draw
    assert (counts - expected).square().sum() / 300 < 3
    assert router.sample(0.5, temperature=1.0).choice == router.choose(0.5)
    own = trained()  # without equal logits
    cold = [own.sample(0.6, temperature=1e-6, generator=noise(0, step)).choice for step in range(20)]
    assert all(choice == own.choose(0.6) for choice in cold)  # a cold router no longer explores


@pytest.mark.parametrize("index", range(len(SPACES)))
def test_gates_are_the_prefixes_of_the_member(index: int) -> None:
    space, router = SPACES[index], trained(index)
    for step in range(10):
        sample = router.sample(0.6, temperature=1.0, generator=noise(0, step))
        member, found = space.member(sample.choice), gates(space, sample)
        groups = space.shape.mamba.groups if space.shape.mamba else 1
        widths: dict[str, tuple[Tensor | None, int, int]] = {
            "hidden": (found.hidden, member.hidden, space.shape.hidden),
            "kv_heads": (found.kv, member.kv_heads, space.kv_heads[0]),
            "heads_per_kv": (found.query, member.heads_per_kv, space.heads_per_kv[0]),
            "mamba_heads": (found.mamba_heads, member.mamba_heads // groups, space.mamba_heads[0] // groups),
            "mamba_head_dim": (found.channels, member.mamba_head_dim, space.mamba_head_dim[0]),
            "state": (found.state, member.state, space.state[0]),
        }
        for axis, (gate, kept, whole) in widths.items():
            if axis in space.axes:
                assert gate is not None and gate.requires_grad
                assert gate.tolist() == [1.0] * kept + [0.0] * (whole - kept)
            else:
                assert gate is None
        layers = range(space.shape.layers)
        assert found.layers is not None
        assert found.layers.tolist() == [float(layer in member.layers) for layer in layers]
        if space.ffn_per_layer:
            assert found.ffn is not None and found.ffn.shape == (space.shape.layers, space.ffn[0])
            own = [space.axes[f"ffn.{i}"][sample.choice[f"ffn.{i}"]] if i in space.ffn_layers else 480 for i in layers]
            assert found.ffn.sum(1).tolist() == own
            assert (found.ffn.diff(dim=1) <= 0).all()
        elif "ffn" in space.axes:
            assert found.ffn is not None and found.ffn.sum() == member.ffn and (found.ffn.diff() <= 0).all()


def test_the_gradient_of_a_gate_is_that_of_the_options_that_open_it() -> None:
    sample = trained().sample(0.6, temperature=1.0, generator=noise(0, 0))
    leaves = {axis: soft.detach().requires_grad_() for axis, soft in sample.soft.items()}
    gate = gates(HYBRID_SPACE, Sample(choice=sample.choice, soft=leaves)).hidden
    assert gate is not None
    for channel in (0, 79, 80, 100, 159):
        (gradient,) = torch.autograd.grad(gate[channel], leaves["hidden"], retain_graph=True)
        assert gradient.tolist() == [float(option > channel) for option in HYBRID_SPACE.hidden]


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.floats(0.4, 0.95), st.sampled_from(["params", "memory_bytes"]))
def test_costs_are_exact_and_their_gradients_partial_differences(step: int, share: float, cost: str) -> None:
    space, router = HYBRID_SPACE, trained(seed=step % 7)
    workload = Workload(batch=2, prompt=200)
    price = price_of(space.shape, cost, workload)
    sample = router.sample(share, temperature=0.9, generator=noise(0, step))
    total = cost_of(space, sample, price)
    cut = cut_shape(space.shape, space.member(sample.choice))
    assert total.item() == getattr(count(cut, cut.arch, workload), cost)
    # Independently: the logits of one axis moved a little, the expectation over that axis taken by enumeration. The bias of
    # an axis' last layer has the gradient of its logits.
    generator = noise(0, step)
    for (axis, logits), own in zip(router.scores(share).items(), router.routers, strict=True):
        gumbel = -(-torch.rand(len(logits), generator=generator, dtype=torch.float64).log()).log()
        noisy = logits.detach().double() + 0.9 * gumbel
        prices = torch.tensor([price(space.member({**sample.choice, axis: k})) for k in range(len(logits))]).double()
        nudge = 1e-4 * torch.eye(len(logits), dtype=torch.float64)
        ahead, behind = (F.softmax((noisy + sign * nudge) / 0.9, dim=1) @ prices for sign in (1, -1))
        (gradient,) = torch.autograd.grad(total, own.get_parameter("2.bias"), retain_graph=True)
        torch.testing.assert_close(
            gradient.double(), (ahead - behind) / 2e-4, rtol=1e-3, atol=float(prices.max()) * 1e-6
        )


def test_descending_the_cost_narrows_the_choice() -> None:
    router, price = Router(HYBRID_SPACE, SHARES), price_of(HYBRID, "params", Workload())
    optimiser = torch.optim.Adam(router.parameters(), lr=0.03)
    before = price(HYBRID_SPACE.member(router.choose(0.75)))
    for step in range(60):
        sample = router.sample(0.75, temperature=1.0, generator=noise(0, step))
        optimiser.zero_grad()
        (cost_of(HYBRID_SPACE, sample, price) / price(HYBRID_SPACE.whole)).backward()
        optimiser.step()
    assert price(HYBRID_SPACE.member(router.choose(0.75))) < 0.6 * before


def test_a_router_of_a_space_without_choices_costs_nothing_to_train() -> None:
    space = default_space(HYBRID, (), least=1.0)
    router = Router(space, SHARES)
    sample = router.sample(0.5, temperature=1.0, generator=noise(0, 0))
    assert sample.choice == {} and list(router.parameters()) == []
    assert cost_of(space, sample, lambda member: float(member.hidden)).item() == 160


@pytest.mark.parametrize("index", range(len(SPACES)))
def test_state_round_trips_with_the_prior(index: int) -> None:
    router = Router(SPACES[index], SHARES, price=price_of(SPACES[index].shape, "memory_bytes", Workload(prompt=4096)))
    other = Router(SPACES[index], SHARES, seed=1)
    other.load_state_dict(router.state_dict())
    for share in (0.5, 0.6, 0.75):
        assert other.choose(share) == router.choose(share)
        for a, b in zip(other.scores(share).values(), router.scores(share).values(), strict=True):
            assert torch.equal(a, b)


def test_the_seed_alone_decides_the_start() -> None:
    state = torch.random.get_rng_state()
    first, second, third = (Router(HYBRID_SPACE, SHARES, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), state)
    pairs = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert all(pairs)
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), third.parameters(), strict=True))


def test_a_router_is_under_one_percent_of_the_parent() -> None:
    parent = replace(hybrid("M-M*-M-M-M*-M-M", hidden=256, ffn=768), vocab=4096)
    for layerwise in (False, True):
        router = Router(default_space(parent, tuple(range(1, 15)), ffn_per_layer=layerwise), SHARES)
        size = sum(parameter.numel() for parameter in router.parameters())
        assert size < 0.005 * price_of(parent, "params", Workload())(router.space.whole)


def test_preferences_are_log_probabilities() -> None:
    router = trained()
    for axis, row in router.preference(0.6).items():
        assert row.dtype == torch.float64 and not row.requires_grad
        assert row.exp().sum().item() == pytest.approx(1)
        assert int(row.argmax()) == router.choose(0.6)[axis]


def test_impossible_shares_are_refused() -> None:
    for shares in ((), (0.5, 0.5), (0.0,), (1.5,)):
        with pytest.raises(BadBudget, match="shares"):
            Router(HYBRID_SPACE, shares)


def test_a_price_is_asked_only_about_legal_members() -> None:
    def price(member: Member) -> float:
        cut_shape(HYBRID, member)
        return float(member.hidden * member.depth)

    sample = trained().sample(0.6, temperature=1.0, generator=noise(0, 1))
    assert cost_of(HYBRID_SPACE, sample, price).item() == price(HYBRID_SPACE.member(sample.choice))
