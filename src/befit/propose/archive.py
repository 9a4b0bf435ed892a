"""Which networks a model gets to see: a parent to change, and others to be inspired by or to take as examples.

A search by a language model lives on what it is shown. All of this is a function of the scored rows and a random number
generator: nothing is kept between calls, so a run that was killed, or that has many workers, chooses as if it had not been.

With islands, proposal n belongs to island n modulo their number, parents come from the own island alone, and every so many
proposals the best of each island are also seen on the next (a ring), which spreads what works without making all alike.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from befit.errors import BadData

Pick = Literal["best", "diverse", "random"]
"""How examples are chosen: the best, the best that are unlike each other, or any."""

Selection = Literal["elite", "rank", "softmax"]
"""How a parent is chosen: evenly among the best, or with a weight that falls with the rank or with the accuracy."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A network that was trained."""

    number: int
    """Of the proposal, from 0: the order in which they were made. Below 0 for one that was known before the first."""
    key: str
    """Fingerprint; networks of equal key are one network."""
    text: str
    """Its source, or a genome's JSON."""
    dataset: str
    """What it was trained on."""
    accuracy: float
    """On the validation data, 0 .. 1."""
    note: str = ""
    """More to tell about it, such as its parameters: one line."""

    def __post_init__(self) -> None:
        if not 0 <= self.accuracy <= 1:
            raise BadData(f"archive: the accuracy of network {self.number} must be in 0 .. 1, got {self.accuracy!r}")


Similar = Callable[[Scored, Scored], float]
"""How alike two networks are, 0 .. 1."""


@dataclass(frozen=True, kw_only=True)
class ArchiveConfig:
    """How parents and examples are chosen."""

    shots: int = 3
    """Examples beside the parent, 0 .. 6."""
    pick: Pick = "best"
    """best, diverse or random."""
    at_least: float = 0.0
    """Accuracy below which a network is never shown, 0 .. 1: above chance, say."""
    selection: Selection = "rank"
    """elite, rank or softmax."""
    elite: int = 10
    """Networks among which the elite selection draws, at least 1."""
    pressure: float = 1.0
    """The weight of rank r (from 1) is r to the power of minus this, 0 or more; 0 draws evenly."""
    temperature: float = 0.25
    """The softmax selection's, in standard deviations of the accuracies seen, above 0: lower is greedier."""
    islands: int = 1
    """Populations that live apart, at least 1."""
    migrate: int = 20
    """Proposals on each island between two migrations, at least 1."""
    migrants: int = 2
    """Networks that each island shows to the next, 0 or more."""

    def __post_init__(self) -> None:
        if not 0 <= self.shots <= 6:
            raise BadData(f"shots must be 0 .. 6, got {self.shots}")
        if not 0 <= self.at_least <= 1:
            raise BadData(f"archive: at_least must be 0 .. 1, got {self.at_least}")
        if self.islands < 1:
            raise BadData(f"islands must be at least 1, got {self.islands}")
        if self.pick not in get_args(Pick):
            raise BadData(f"pick must be one of {', '.join(get_args(Pick))}, got {self.pick!r}")
        if self.selection not in get_args(Selection):
            raise BadData(f"selection must be one of {', '.join(get_args(Selection))}, got {self.selection!r}")
        if min(self.elite, self.migrate) < 1 or self.migrants < 0:
            raise BadData("archive: elite and migrate must be at least 1, migrants 0 or more")
        if not self.pressure >= 0 or not self.temperature > 0:
            raise BadData("archive: pressure must be 0 or more and temperature above 0")


def ranked(records: Sequence[Scored], *, dataset: str, at_least: float = 0.0) -> list[Scored]:
    """The networks of a dataset, the best first, each once; among equals the earlier one. Those below `at_least` are left out."""
    best = dict[str, Scored]()
    for one in sorted(records, key=lambda one: (-one.accuracy, one.number)):
        if one.dataset == dataset and one.accuracy >= at_least:
            best.setdefault(one.key, one)
    return list(best.values())


def parent(ranking: Sequence[Scored], rng: random.Random, config: ArchiveConfig) -> Scored | None:
    """One of a ranking; None if it is empty."""
    if not ranking:
        return None
    if config.selection == "elite":
        return rng.choice(ranking[: config.elite])
    if config.selection == "rank":
        weights = [(place + 1) ** -config.pressure for place in range(len(ranking))]
    else:
        accuracies = [one.accuracy for one in ranking]
        scale = config.temperature * (_deviation(accuracies) or 1.0)
        weights = [math.exp((one - accuracies[0]) / scale) for one in accuracies]
    return rng.choices(ranking, weights)[0]


def examples(
    ranking: Sequence[Scored], count: int, how: Pick, rng: random.Random, similar: Similar | None = None
) -> list[Scored]:
    """`count` networks of a ranking, or all there are, the most valuable first.

    `diverse` starts with the best and goes on with the one of the better half (at least 4 x `count`) that is least like any
    chosen before. Raises `BadData` for `diverse` without `similar`.
    """
    if how == "best":
        return list(ranking[:count])
    if how == "random":
        return sorted(rng.sample(ranking, min(count, len(ranking))), key=ranking.index)
    if similar is None:
        raise BadData("archive: diverse examples need a measure of how similar two networks are")
    pool = list(ranking[: max(4 * count, len(ranking) // 2)])
    closest = dict.fromkeys(range(len(pool)), 0.0)
    chosen = list[Scored]()
    while pool and closest and len(chosen) < count:
        place = min(closest, key=lambda place: (closest[place], place))
        chosen.append(pool[place])
        del closest[place]
        closest = {other: max(near, similar(pool[other], pool[place])) for other, near in closest.items()}
    return chosen


def island(number: int, config: ArchiveConfig) -> int:
    """Where a proposal belongs."""
    return number % config.islands


def population(records: Sequence[Scored], place: int, number: int, config: ArchiveConfig) -> list[Scored]:
    """What proposal `number` may choose from on the island `place`: its own networks and those that came by migration.

    Only proposals before `number` count, and migrants are the best of their island at the time of the migration, natives or
    migrants themselves: good ones wander on, an island a time.
    """
    before = [one for one in records if one.number < number]
    period = config.migrate * config.islands
    members = [[] for _ in range(config.islands)]
    for event in range(number // period + 1):
        if event:
            movers = [sorted(one, key=lambda one: (-one.accuracy, one.number))[: config.migrants] for one in members]
            for source, moved in enumerate(movers):
                there = members[(source + 1) % config.islands]
                there += [one for one in moved if one not in there]
        for one in before:
            # Networks that were known from the start have numbers below 0.
            if event * period <= max(0, one.number) < (event + 1) * period:
                members[island(one.number, config)].append(one)
    return members[place]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a proposal is made from."""

    parent: Scored | None
    """The network to change; None where there is none yet."""
    examples: tuple[Scored, ...]
    """Others, the most valuable first, without the parent."""


def choose(
    records: Sequence[Scored],
    number: int,
    rng: random.Random,
    config: ArchiveConfig,
    *,
    dataset: str,
    similar: Similar | None = None,
) -> Shown:
    """Parent and examples of proposal `number`, from the networks that were trained on this dataset."""
    there = population(records, island(number, config), number, config)
    ranking = ranked(there, dataset=dataset, at_least=config.at_least)
    chosen = parent(ranking, rng, config)
    others = [one for one in ranking if one != chosen]
    return Shown(parent=chosen, examples=tuple(examples(others, config.shots, config.pick, rng, similar)))


def _deviation(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((one - mean) ** 2 for one in values) / len(values))
