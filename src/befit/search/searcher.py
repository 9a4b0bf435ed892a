"""What a searcher is: a pure function from what was seen to what to try next.

A searcher keeps nothing between calls. What it knows is in the `View`, which is rebuilt from the study's storage each
time; its random numbers come from a generator seeded by the study's seed and the number of trials so far. So a study that
was killed goes on as if it had not been, and a new method is one function and a line in `searchers.py`.
"""

import functools
import hashlib
import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from befit.arch.space import Arch, Space
from befit.errors import BefitError, Infeasible

DRAWS = 10_000
"""Draws without one that is new and within the budget, after which a search gives up."""

LED_AFTER, LED = 300, 30
"""Draws after which archs are led into a budget, and how many are until a search gives up."""

SMALL = 100_000
"""A space of at most so many combinations is listed instead, so that its last arch is found too."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """One trial that has ended."""

    arch: Arch
    value: float | None
    """Higher is better; None if it has no score."""


@dataclass(frozen=True, kw_only=True)
class View:
    """All that a searcher may look at."""

    space: Space
    told: tuple[Told, ...]
    """Ended trials in the order in which they were asked for."""
    running: tuple[Arch, ...]
    """Asked for, not ended."""
    allowed: Callable[[Arch], bool]
    """Whether an arch keeps the budget, as far as can be said without building it."""
    rng: random.Random
    """Fresh for this proposal, the same after a resume."""
    excess: Callable[[Arch], float] | None = None
    """By what share an arch breaks the budget, 0 or less if it keeps it: the way into a budget that hardly any draw keeps."""

    @functools.cached_property
    def keys(self) -> frozenset[Any]:
        """Of every arch that was asked for: what computes the same function as one of them is not new."""
        key = self.space.key
        return frozenset([*(key(told.arch) for told in self.told), *(key(arch) for arch in self.running)])

    @functools.cached_property
    def scored(self) -> tuple[tuple[Arch, float], ...]:
        """Arch and value of the trials that have a score, in order."""
        return tuple((told.arch, told.value) for told in self.told if told.value is not None)

    def new(self, arch: Arch) -> bool:
        """Whether nothing of the same function was asked for yet, and the budget is kept."""
        return self.space.key(arch) not in self.keys and self.allowed(arch)

    def first(self, archs: Iterable[Arch]) -> Arch | None:
        """The first new one."""
        return next((arch for arch in archs if self.new(arch)), None)

    def draw(self) -> Arch:
        """A new arch, at random. Raises `Infeasible` if `DRAWS` draws find none, and there is none in a small space.

        Where the budget's `excess` is known, a few hundred draws are enough: then archs are led into it, change by change.
        """
        small = math.prod(len(choice.options) for choice in self.space.choices.values()) <= SMALL
        draws = DRAWS // 100 if small else DRAWS if self.excess is None else LED_AFTER
        found = self.first(self.space.sample(self.rng) for _ in range(draws))
        if found is None and not small and self.excess is not None:
            led = (self._led(self.excess) for _ in range(LED))
            found = self.first(arch for arch in led if arch is not None)
        if found is None and small:
            left = [arch for arch in self.space.enumerate() if self.new(arch)]
            found = self.rng.choice(left) if left else None
        if found is None:
            looked = "the whole space" if small else f"{draws:,} draws from the space"
            raise Infeasible(
                f"{looked} brought no arch that is within the budget and was not tried before "
                f"({len(self.told)} trials have ended); loosen the budget, widen the space or ask for fewer trials",
                binding="budget",
                nearest={},
            )
        return found

    def _led(self, excess: Callable[[Arch], float]) -> Arch | None:
        """From a draw by the best single changes into the budget, and from there a random walk inside it."""
        arch = self.space.sample(self.rng)
        while (over := excess(arch)) > 0:
            nearest = min(self.space.neighbours(arch), key=excess, default=arch)
            if excess(nearest) >= over:
                return None
            arch = nearest
        for _ in range(2 * len(self.space.choices)):
            other = self.space.mutate(arch, self.rng)
            arch = other if self.allowed(other) else arch
        return arch


class Searcher(Protocol):
    """Proposes; a frozen dataclass whose fields are the method's settings."""

    def propose(self, view: View) -> Arch:
        """An allowed arch to try next. Raises `Infeasible` if none is found."""
        ...


def seed_of(*parts: int | str) -> int:
    """A seed of 32 bits that follows from the parts, the same in every process and version of Python."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4])


def rng_of(seed: int, position: int) -> random.Random:
    """The generator of the proposal at `position`, 0 being a study's first."""
    return random.Random(seed_of(seed, position))


def mutants(space: Space, parent: Callable[[], Arch], rng: random.Random, *, patience: int = 50) -> Iterator[Arch]:
    """Archs one change away from what `parent` returns, after `patience` of them two changes, and so on to twenty."""
    for number in range(20 * patience):
        changes = min(1 + number // patience, len(space.choices))
        yield functools.reduce(lambda arch, _: space.mutate(arch, rng), range(changes), parent())


def tournament(population: Iterable[tuple[Arch, float]], size: int, rng: random.Random) -> Arch:
    """The best of `size` draws with replacement; of equal ones the first drawn."""
    pool = list(population)
    return max((rng.choice(pool) for _ in range(size)), key=lambda one: one[1])[0]


def check(name: str, **rules: tuple[float, float, float]) -> None:
    """Refuse a searcher's setting outside its range: each rule is (value, least, most)."""
    for field, (value, least, most) in rules.items():
        if not least <= value <= most:
            end = "or more" if math.isinf(most) else f".. {most:g}"
            raise BefitError(f"searcher {name}: {field} must be {least:g} {end}, got {value!r}")
