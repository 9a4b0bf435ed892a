"""A policy gradient: a distribution over each choice's options, pushed towards what scored above the running mean.

The policy draws choice after choice, so the probability of an arch is a product over its open choices. After each trial
the logits move along the gradient of  advantage · log p(arch) + entropy_weight · H,  the estimator REINFORCE (Williams, 1992)
with a moving average as baseline. Used for architectures by Zoph and Le (ICLR 2017), and as a factorised softmax, as here,
in NAS-Bench-201. The policy is not kept: it is trained again from the trials each time, which takes milliseconds.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from befit.arch.space import Arch, Space
from befit.search.searcher import DRAWS, View, check

Vector = NDArray[np.float64]
"""One number for each option of each choice, in the space's order."""


@dataclass(frozen=True, kw_only=True)
class Reinforce:
    """Settings are for a hundred or so trials; for thousands lower the rate."""

    rate: float = 0.2
    """Of Adam, in logits; above 0."""
    memory: float = 0.9
    """Share of the old baseline that each new score leaves; 0 .. 1."""
    entropy_weight: float = 0.0
    """What a nat of the policy's entropy is worth, in standard deviations of the score; 0 or more."""

    def __post_init__(self) -> None:
        check(
            "reinforce",
            rate=(self.rate, 1e-9, math.inf),
            memory=(self.memory, 0, 1),
            entropy_weight=(self.entropy_weight, 0, math.inf),
        )

    def propose(self, view: View) -> Arch:
        policy = Policy(view.space)
        shares = policy.shares(self.logits(view, policy))
        return view.first(policy.draw(shares, view) for _ in range(DRAWS // 10)) or view.draw()

    def logits(self, view: View, policy: "Policy") -> Vector:
        """What training on the trials so far makes of a uniform policy.

        A failed trial counts as the worst score so far. Scores are measured in their own spread so far, so that
        accuracies in 0 .. 1 and losses in the thousands need the same rate.
        """
        logits, mean, square = np.zeros(policy.width), np.zeros(policy.width), np.zeros(policy.width)
        scores, baseline = list[float](), None
        for told in view.told:
            if told.value is None and not scores:
                continue
            scores.append(min(scores) if told.value is None else told.value)
            baseline = scores[-1] if baseline is None else baseline
            spread = float(np.std(scores)) or 1.0
            advantage = (scores[-1] - baseline) / spread
            baseline = self.memory * baseline + (1 - self.memory) * scores[-1]
            gradient = policy.gradient(logits, told.arch, advantage, self.entropy_weight)
            step = len(scores)
            mean = 0.9 * mean + 0.1 * gradient
            square = 0.999 * square + 0.001 * gradient**2
            logits = logits + self.rate * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        return logits


class Policy:
    """Independent softmax distributions over the options of each choice of a space."""

    def __init__(self, space: Space) -> None:
        self.space = space
        counts = [len(choice.options) for choice in space.choices.values()]
        ends = list(itertools.accumulate(counts))
        self.width = ends[-1]
        self.parts = {name: slice(end - n, end) for name, end, n in zip(space.choices, ends, counts, strict=True)}
        self.starts = np.array([end - n for end, n in zip(ends, counts, strict=True)])
        self.owner = np.repeat(np.arange(len(counts)), counts)
        self.place = {
            (name, option): self.parts[name].start + i
            for name, choice in space.choices.items()
            for i, option in enumerate(choice.options)
        }

    def shares(self, logits: Vector) -> Vector:
        """The probability of each option where its choice is open."""
        raised = np.exp(logits - np.maximum.reduceat(logits, self.starts)[self.owner])
        return raised / np.add.reduceat(raised, self.starts)[self.owner]

    def gradient(self, logits: Vector, arch: Arch, advantage: float, entropy_weight: float) -> Vector:
        """Of advantage · log p(arch) + entropy_weight · H by the logits, H summed over the choices open in `arch`."""
        shares = self.shares(logits)
        open_ = np.zeros(len(self.starts))
        taken = np.zeros(self.width)
        for name, option in arch.items():
            place = self.place[name, option]
            taken[place] = 1.0
            open_[self.owner[place]] = 1.0
        gradient = advantage * (taken - shares)
        if entropy_weight:
            surprise = -np.log(np.maximum(shares, 1e-300))
            entropy = np.add.reduceat(shares * surprise, self.starts)[self.owner]
            gradient = gradient + entropy_weight * shares * (surprise - entropy)
        return gradient * open_[self.owner]

    def draw(self, shares: Vector, view: View) -> Arch:
        """An arch from the policy, redrawn until the space's rule accepts it; from uniform draws if it never does."""
        for _ in range(DRAWS):
            taken = dict[str, str | int | float | bool]()
            for name, choice in self.space.choices.items():
                if choice.open(taken):
                    part = shares[self.parts[name]].tolist()
                    taken[name] = view.rng.choices(choice.options, part)[0]
            arch = Arch(tuple(taken.items()))
            if self.space.legal is None or self.space.legal(arch):
                return arch
        return self.space.sample(view.rng)
