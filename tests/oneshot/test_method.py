"""Methods against closed forms and the distributions that they draw from."""

import math

import pytest
import torch
from torch import Tensor, nn

from befit.oneshot.method import Darts, DrNas, Gdas, Method, concentration
from befit.oneshot.mixture import Mixed

LOGITS = torch.tensor([0.3, -0.5, 1.0, 0.1], dtype=torch.float64)


class Constant(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.value)


def logits() -> dict[str, Tensor]:
    return {"a": LOGITS.clone().requires_grad_(), "b": torch.zeros(2, dtype=torch.float64, requires_grad=True)}


@pytest.mark.parametrize("method", [Darts(), Gdas(), DrNas()])
def test_equal_seeds_draw_alike_and_disturb_nobody(method: Method) -> None:
    before = torch.random.get_rng_state()
    drawn = [method.draw(logits(), 0.5, seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(drawn[0]["a"], drawn[1]["a"])
    assert torch.equal(drawn[0]["a"], drawn[2]["a"]) == isinstance(method, Darts)
    for weights in (*drawn, method.probabilities(logits())):
        assert list(weights) == ["a", "b"]
        assert all(math.isclose(float(own.sum().detach()), 1, abs_tol=1e-6) for own in weights.values())


def test_darts_is_a_softmax() -> None:
    found = Darts().draw(logits(), 0.0, 0)["a"]
    exps = [math.exp(x) for x in LOGITS.tolist()]
    assert found.tolist() == pytest.approx([x / sum(exps) for x in exps])
    assert float(Darts().regulariser(logits())) == 0


@pytest.mark.parametrize("progress", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_gdas_passes_on_the_gradient_of_the_option_it_drew(seed: int, progress: float) -> None:
    own, prices = logits(), [1.0, -2.0, 3.0, 5.0]
    weights = Gdas(hot=10.0, cold=0.1).draw(own, progress, seed)["a"]
    assert sorted(weights.tolist()) == [0.0, 0.0, 0.0, 1.0]
    drawn = int(weights.argmax())
    Mixed(map(Constant, prices))(torch.zeros(1, dtype=torch.float64), weights).sum().backward()
    # The closed form for this noise: c_s p_s (1[j = s] - p_j) / temperature with p the noisy softmax.
    noise = -torch.empty(4, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(seed)).log()
    temperature = 10.0 - 9.9 * progress
    p = ((LOGITS.log_softmax(0) + noise) / temperature).softmax(0)
    wanted = prices[drawn] * p[drawn] * (torch.eye(4, dtype=torch.float64)[drawn] - p) / temperature
    assert int((LOGITS + noise).argmax()) == drawn
    torch.testing.assert_close(own["a"].grad, wanted)


def test_gdas_draws_by_its_probabilities_at_any_temperature() -> None:
    count, own = 4000, {"a": LOGITS}
    for progress in (0.0, 1.0):
        total = torch.stack([Gdas().draw(own, progress, seed)["a"] for seed in range(count)]).sum(0)
        wanted = Gdas().probabilities(own)["a"] * count
        assert float(((total - wanted) ** 2 / wanted).sum()) < 21.1  # chi-square with 3 degrees: 1 in 10,000 by chance


def test_gdas_refuses_a_temperature_of_0() -> None:
    with pytest.raises(ValueError, match=r"temperatures must be above 0, got hot=10.0, cold=0"):
        Gdas(cold=0)


def test_drnas_draws_and_their_gradients_have_the_mean_of_the_dirichlet() -> None:
    own, prices, count = logits(), torch.tensor([1.0, -2.0, 3.0, 5.0], dtype=torch.float64), 1500
    drawn = torch.stack([DrNas().draw(own, 0.0, seed)["a"] for seed in range(count)])
    mean = DrNas().probabilities(own)["a"]
    deviation = drawn.std(0) / math.sqrt(count)
    assert bool(((drawn.mean(0) - mean).abs() < 4.5 * deviation).all())
    (wanted,) = torch.autograd.grad(prices @ mean, own["a"])
    (slope,) = torch.autograd.grad((drawn @ prices).mean(), own["a"])
    assert (slope - wanted).norm() < 0.15 * wanted.norm()


def test_drnas_is_held_to_the_uniform_dirichlet() -> None:
    assert float(DrNas().regulariser({"a": torch.zeros(5)})) == pytest.approx(0, abs=1e-6)
    c = [x + 1 if x > 0 else math.exp(x) for x in LOGITS.tolist()]
    assert concentration(LOGITS).tolist() == pytest.approx(c)
    # KL(Dirichlet(c) || Dirichlet(1, .., 1)), Penny (2001), with the digamma function as a difference quotient.
    digamma = [(math.lgamma(x + 1e-5) - math.lgamma(x - 1e-5)) / 2e-5 for x in (*c, sum(c))]
    wanted = math.lgamma(sum(c)) - sum(map(math.lgamma, c)) - math.lgamma(4)
    wanted += sum((x - 1) * (d - digamma[-1]) for x, d in zip(c, digamma[:-1], strict=True))
    assert float(DrNas(anchor=0.5).regulariser({"a": LOGITS})) == pytest.approx(0.5 * wanted, rel=1e-5)
    with pytest.raises(ValueError, match="anchor must be 0 or more"):
        DrNas(anchor=-1)
