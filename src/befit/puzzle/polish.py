"""The true KL of whole children, and a local search on it under the same budget.

The solver minimises a sum of scores measured one layer at a time, which mis-ranks combinations; so its best solutions are
assembled and compared by their real KL to the parent, and variants are then exchanged between layers for as long as the
real KL falls (after EvoPress, arXiv 2410.14649, which searches on whole-model KL throughout).
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from befit.arch.decoder import DecoderArch
from befit.arch.decoder_space import DecoderSpace
from befit.lm.distill import ParentTerms, kl_given, parent_terms
from befit.progress import Progress, silent
from befit.puzzle.library import Library

KEPT_TERMS = 2**28
"""Parent logits kept between evaluations, in numbers (1 GiB in fp32); beyond that the parent runs anew each time."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One child whose true KL was measured."""

    arch: DecoderArch
    """What it is."""
    kl: float
    """KL(parent || child) in nats a token, before healing."""
    origin: str
    """Where it came from: solution 1, solution 2, …, swap."""


@dataclass(frozen=True, kw_only=True)
class PolishConfig:
    """How long to search."""

    evaluations: int = 48
    """Children assembled and measured, the solver's solutions included."""
    drawn: int = 4000
    """Random moves looked at in a round, by predicted score and cost alone."""
    at_once: int = 8
    """Moves of a round whose true KL is measured: those of lowest predicted score."""
    seed: int = 0
    """Of the moves."""


class TrueKl:
    """KL(parent || child) of assembled children on fixed token ids (N, T); every answer is remembered.

    `ask` shares out children that are new among several processes, each with a `TrueKl` of its own.
    """

    def __init__(self, library: Library, tokens: Tensor, *, batch: int = 8) -> None:
        self.library = library
        self.batches = tokens.split(batch)
        self.known: dict[DecoderArch, float] = {} if library.healed else {library.space.shape.arch: 0.0}
        self.keep = tokens.numel() * library.space.shape.vocab <= KEPT_TERMS
        self.terms: list[ParentTerms] = []
        self.ask: Callable[[Sequence[DecoderArch]], list[float]] | None = None

    def all(self, archs: Sequence[DecoderArch]) -> list[float]:
        """Of several children at once."""
        new = [arch for arch in dict.fromkeys(archs) if arch not in self.known]
        if self.ask is not None and new:
            self.known |= zip(new, self.ask(new), strict=True)
        return [self(arch) for arch in archs]

    @torch.inference_mode()
    def __call__(self, arch: DecoderArch) -> float:
        """Nats a token, mean over all positions."""
        if arch not in self.known:
            child = self.library.compose(arch)
            total = 0.0
            for number, ids in enumerate(self.batches):
                logits = child(ids.to(child.device), use_cache=False).logits
                total += float(kl_given(self._terms(number), logits).sum())
            self.known[arch] = total / sum(len(ids) for ids in self.batches)
        return self.known[arch]

    def _terms(self, number: int) -> ParentTerms:
        if number < len(self.terms):
            return self.terms[number]
        parent = self.library.parent
        terms = parent_terms(parent(self.batches[number].to(parent.device), use_cache=False).logits)
        if self.keep and number == len(self.terms):
            self.terms.append(terms)
        return terms


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Three opinions on an architecture: the truth, a cheap guess, and whether it is allowed."""

    true_kls: Callable[[Sequence[DecoderArch]], Sequence[float]]
    """KL of assembled children."""
    predicted: Callable[[DecoderArch], float]
    """Sum of scores."""
    affordable: Callable[[DecoderArch], bool]
    """Within budget by predicted costs."""


def polish(
    starts: Sequence[tuple[str, DecoderArch]],
    space: DecoderSpace,
    judge: Judge,
    config: PolishConfig,
    *,
    progress: Progress = silent,
) -> tuple[Tried, ...]:
    """Every child measured, best first: the starts, then moves from the best so far.

    A move changes one layer, or two layers at once so that one can pay for the other.
    """
    tried: dict[DecoderArch, Tried] = {}
    rng = random.Random(config.seed)
    budget = iter(progress(range(config.evaluations), "polish", config.evaluations))

    def measure(named: Iterable[tuple[str, DecoderArch]]) -> None:
        new = dict[DecoderArch, str]()
        for origin, arch in named:
            if arch not in tried and arch not in new and next(budget, None) is not None:
                new[arch] = origin
        for (arch, origin), kl in zip(new.items(), judge.true_kls(list(new)), strict=True):
            tried[arch] = Tried(arch=arch, kl=kl, origin=origin)

    measure(starts)
    while tried:
        best = min(tried.values(), key=lambda t: t.kl)
        moves = {_move(best.arch, space, rng) for _ in range(config.drawn)}
        legal = [m for m in moves if m not in tried and space.contains(m) and judge.affordable(m)]
        # Sets have no order of their own: the name settles ties, so that every process searches alike.
        legal.sort(key=lambda m: (judge.predicted(m), [b.name for b in m.blocks]))
        count = len(tried)
        measure(("swap", arch) for arch in legal[: config.at_once])
        stuck = min(t.kl for t in tried.values()) >= best.kl and len(legal) <= config.at_once
        if len(tried) == count or stuck:
            break
    for _ in budget:  # Close the progress bar when the search ended early.
        pass
    return tuple(sorted(tried.values(), key=lambda t: t.kl))


def _move(arch: DecoderArch, space: DecoderSpace, rng: random.Random) -> DecoderArch:
    blocks = list(arch.blocks)
    for layer in rng.sample(range(len(blocks)), k=min(rng.choice((1, 2)), len(blocks))):
        blocks[layer] = rng.choice(space.blocks(layer))
    return DecoderArch(blocks=tuple(blocks))
