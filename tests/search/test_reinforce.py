"""The policy gradient against enumeration: over all archs of a space its mean is the gradient of the expected score."""

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from befit.arch.space import Arch, Choice, Space
from befit.search.reinforce import Policy, Reinforce
from befit.search.searcher import Told, View, rng_of

SPACE = Space({"a": Choice(0, 1, 2), "b": Choice("x", "y"), "c": Choice(3, 5, 7, when={"b": "x"})})
ARCHS = list(SPACE.enumerate())
LOGITS = np.array([0.3, -0.2, 1.1, 0.5, -0.4, 0.0, 0.9, -1.0])


def reward(arch: Arch) -> float:
    return float(sum(len(str(value)) * (place + 2) for place, value in enumerate(arch.values()))) + 3.0 * (
        arch["a"] == 1
    )


def chance(policy: Policy, logits: np.ndarray, arch: Arch) -> float:
    """The product of softmax probabilities, written out."""
    product = 1.0
    for name, value in arch.items():
        own = logits[policy.parts[name]]
        product *= math.exp(own[SPACE.choices[name].options.index(value)]) / sum(map(math.exp, own))
    return product


def differences(function: Callable[[np.ndarray], float], logits: np.ndarray) -> np.ndarray:
    step = 1e-5
    sides = [(function(logits + step * one), function(logits - step * one)) for one in np.eye(len(logits))]
    return np.array([(up - down) / (2 * step) for up, down in sides])


def test_the_chances_of_all_archs_add_up_to_one() -> None:
    policy = Policy(SPACE)
    assert sum(chance(policy, LOGITS, arch) for arch in ARCHS) == pytest.approx(1)
    for name, part in policy.parts.items():
        assert policy.shares(LOGITS)[part].sum() == pytest.approx(1), name


@pytest.mark.parametrize("baseline", [0.0, 7.5])
def test_the_mean_of_the_estimator_is_the_gradient_of_the_expected_reward(baseline: float) -> None:
    policy = Policy(SPACE)
    mean = sum(
        chance(policy, LOGITS, arch) * policy.gradient(LOGITS, arch, reward(arch) - baseline, 0.0) for arch in ARCHS
    )
    expected = differences(lambda at: sum(chance(policy, at, arch) * reward(arch) for arch in ARCHS), LOGITS)
    assert mean == pytest.approx(expected, abs=1e-7)


def test_the_entropy_term_is_the_gradient_of_the_entropy_of_the_open_choices() -> None:
    policy = Policy(SPACE)
    for arch in (ARCHS[0], ARCHS[-1]):

        def entropy(at: np.ndarray, arch: Arch = arch) -> float:
            shares = policy.shares(at)
            return -sum(float((shares[policy.parts[n]] * np.log(shares[policy.parts[n]])).sum()) for n in arch)

        assert policy.gradient(LOGITS, arch, 0.0, 1.0) == pytest.approx(differences(entropy, LOGITS), abs=1e-7)


def test_draws_follow_the_policy() -> None:
    policy = Policy(SPACE)
    view = View(space=SPACE, told=(), running=(), allowed=lambda _: True, rng=rng_of(0, 0))
    found = Counter(policy.draw(policy.shares(LOGITS), view) for _ in range(6000))
    for arch in ARCHS:
        wanted = 6000 * chance(policy, LOGITS, arch)
        assert abs(found[arch] - wanted) < 5 * math.sqrt(wanted)


def test_training_is_adam_with_a_moving_baseline() -> None:
    """Three steps by hand, with PyTorch's Adam on the log-probability itself."""
    import torch

    archs, scores = [ARCHS[1], ARCHS[7], ARCHS[10]], [0.4, 0.9, 0.1]
    policy, settings = Policy(SPACE), Reinforce(rate=0.1, memory=0.8)
    told = tuple(Told(arch=arch, value=score) for arch, score in zip(archs, scores, strict=True))
    view = View(space=SPACE, told=told, running=(), allowed=lambda _: True, rng=rng_of(0, 3))
    logits = torch.zeros(policy.width, dtype=torch.float64, requires_grad=True)
    adam, baseline = torch.optim.Adam([logits], lr=0.1), scores[0]
    for place, (arch, score) in enumerate(zip(archs, scores, strict=True)):
        spread = float(np.std(scores[: place + 1])) or 1.0
        places = [policy.parts[name].start + SPACE.choices[name].options.index(value) for name, value in arch.items()]
        log = torch.cat([logits[part].log_softmax(0) for part in policy.parts.values()])[places].sum()
        adam.zero_grad()
        (-(score - baseline) / spread * log).backward()
        adam.step()
        baseline = 0.8 * baseline + 0.2 * score
    assert settings.logits(view, policy) == pytest.approx(logits.detach().numpy(), abs=1e-6)


def test_a_failure_counts_as_the_worst_so_far() -> None:
    policy = Policy(SPACE)

    def trained(third: float | None) -> np.ndarray:
        told = tuple(Told(arch=a, value=v) for a, v in zip(ARCHS[:3], (0.5, 0.2, third), strict=True))
        view = View(space=SPACE, told=told, running=(), allowed=lambda _: True, rng=rng_of(0, 0))
        return Reinforce().logits(view, policy)

    assert (trained(None) == trained(0.2)).all() and (trained(None) != trained(0.6)).any()
