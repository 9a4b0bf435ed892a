"""A search space: named choices, some of them only open under a condition, and a rule of what is legal.

    space = Space({
        "width": Choice(16, 32, 64),
        "mixer": Choice("conv", "pool"),
        "kernel": Choice(3, 5, when={"mixer": "conv"}),   # there is a kernel only where there is a convolution
    })
    arch = space.sample(random.Random(0))                  # {'width': 32, 'mixer': 'conv', 'kernel': 5}

An `Arch` is one point: a frozen, hashable mapping of the open choices, in the space's order, with a strict JSON form. A space
holds no state and draws no numbers of its own: whoever samples brings a `random.Random`. What a space adds to its choices
(which archs are legal, which compute the same function, what a predictor should look at) are functions given to it.
"""

import functools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from befit.errors import IllegalArch

Value = str | int | float | bool
"""What an option may be: anything that JSON and an Optuna storage keep as it is."""

TRIES = 10_000
"""Draws after which a rule that refuses them all counts as one that refuses everything."""

CHANGES = 100
"""Draws after which a change that the rule keeps refusing gives way to the arch as it was."""


class Choice:
    """One of several options, distinct and at least one; with `when`, open only where other choices took certain options.

    `when={"mixer": "conv"}` and `when={"mixer": ("conv", "attention"), "depth": (2, 3)}` name earlier choices of the
    space; all conditions must hold, and a choice that is itself closed fulfils none.
    """

    def __init__(self, *options: Value, when: Mapping[str, Value | Sequence[Value]] | None = None) -> None:
        for option in options:
            if not isinstance(option, str | int | float):  # pyright: ignore[reportUnnecessaryIsInstance] - users need not check types
                raise IllegalArch(
                    f"Choice: an option must be a text, a number or a truth value, got {option!r} "
                    f"({type(option).__name__}); name it, and look the name up where the network is built"
                )
        kinds = {(type(option), option) for option in options}
        if not options or len(kinds) < len(options):
            raise IllegalArch(f"Choice needs distinct options, at least one; got {options!r}")
        self.options: tuple[Value, ...] = options
        self.when: dict[str, tuple[Value, ...]] = {
            name: (told,) if isinstance(told, str | int | float) else tuple(told) for name, told in (when or {}).items()
        }

    def open(self, values: Mapping[str, Value]) -> bool:
        """Whether the choice is to be made, given the values of earlier ones."""
        return all(name in values and _in(values[name], allowed) for name, allowed in self.when.items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Choice) and (self.options, self.when) == (other.options, other.when)

    def __hash__(self) -> int:
        return hash((self.options, tuple(self.when)))

    def __repr__(self) -> str:
        condition = f", when={self.when!r}" if self.when else ""
        return f"Choice({', '.join(map(repr, self.options))}{condition})"


@dataclass(frozen=True, eq=True)
class Arch(Mapping[str, Value]):
    """One point of a space: the options taken, by name. Hashable, ordered as the space is, equal by content."""

    items_: tuple[tuple[str, Value], ...]
    """Name and option of every open choice."""

    def __getitem__(self, name: str) -> Value:
        for own, value in self.items_:
            if own == name:
                return value
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self.items_)

    def __len__(self) -> int:
        return len(self.items_)

    def __hash__(self) -> int:
        return hash(self.items_)

    def to_json(self) -> dict[str, Value]:
        """The options by name, as JSON keeps them; `Space.arch` reads them back."""
        return dict(self.items_)

    def __repr__(self) -> str:
        return f"Arch({dict(self.items_)!r})"


@dataclass(frozen=True)
class Space:
    """Named choices and what is known about their combinations."""

    choices: Mapping[str, Choice]
    """In the order in which they are made: a condition names earlier choices only."""
    legal: Callable[[Arch], bool] | None = None
    """Which combinations may be built; all if None."""
    same: Callable[[Arch], Any] | None = None
    """A hashable key that archs computing the same function share; the arch itself if None."""
    features: Callable[[Arch], Sequence[float]] | None = None
    """Numbers a predictor should see beside the one-hot code, always as many; none if None."""

    def __post_init__(self) -> None:
        if not self.choices:
            raise IllegalArch("a space needs at least one choice")
        earlier = set[str]()
        for name, choice in self.choices.items():
            for other, allowed in choice.when.items():
                if other not in earlier:
                    raise IllegalArch(f"choice {name!r}: its condition names {other!r}, which is no earlier choice")
                for value in allowed:
                    if not _in(value, self.choices[other].options):
                        raise IllegalArch(f"choice {name!r}: its condition wants {other}={value!r}, no option there")
            earlier.add(name)

    def arch(self, values: Mapping[str, Any]) -> Arch:
        """The arch of these values, in order. Raises `IllegalArch` naming what is unknown, missing, closed or refused."""
        taken = dict[str, Value]()
        for name, choice in self.choices.items():
            if choice.open(taken):
                if name not in values:
                    raise IllegalArch(f"arch: choice {name!r} is missing; expected one of {list(choice.options)}")
                if not _in(values[name], choice.options):
                    raise IllegalArch(f"arch: {name}={values[name]!r} is no option; expected {list(choice.options)}")
                taken[name] = choice.options[_place(values[name], choice.options)]
        if extra := [name for name in values if name not in taken]:
            raise IllegalArch(f"arch: {', '.join(map(repr, extra))} given, but no choice of that name is open here")
        arch = Arch(tuple(taken.items()))
        if self.legal is not None and not self.legal(arch):
            raise IllegalArch(f"arch: the space's rule refuses {arch.to_json()}")
        return arch

    def contains(self, values: Mapping[str, Any]) -> bool:
        """Whether these values are an arch of this space."""
        try:
            self.arch(values)
        except IllegalArch:
            return False
        return True

    def sample(self, rng: random.Random) -> Arch:
        """An arch by uniform draws, choice after choice, redrawn until legal. `IllegalArch` if nothing seems to be."""
        for _ in range(TRIES):
            if (found := self._complete({}, rng)) is not None:
                return found
        raise IllegalArch(f"the space's rule refused {TRIES:,} draws in a row; does it allow anything?")

    def mutate(self, arch: Arch, rng: random.Random) -> Arch:
        """One choice changed to another option; what this opens is drawn. The same arch if the rule allows no such change."""

        def changed() -> Arch | None:
            open_ = [name for name in arch if len(self.choices[name].options) > 1]
            if not open_:
                return None
            name = rng.choice(open_)
            option = rng.choice([option for option in self.choices[name].options if option != arch[name]])
            return self._complete({**arch, name: option}, rng)

        found = next(filter(None, (changed() for _ in range(CHANGES))), None)
        return found or rng.choice(self.neighbours(arch) or (arch,))

    def neighbours(self, arch: Arch) -> tuple[Arch, ...]:
        """Every legal arch with one choice changed; what this opens takes its first option."""
        if arch not in self._near:
            self._near[arch] = self._neighbours(arch)
        return self._near[arch]

    @functools.cached_property
    def _near(self) -> dict[Arch, tuple[Arch, ...]]:
        """Neighbours asked for before: a local search walks the same way again for each proposal."""
        return {}

    def _neighbours(self, arch: Arch) -> tuple[Arch, ...]:
        found = dict[Arch, None]()
        for name in arch:
            for option in self.choices[name].options:
                if option != arch[name]:
                    other = self._complete({**arch, name: option}, None)
                    if other is not None:
                        found[other] = None
        return tuple(found)

    def cross(self, first: Arch, second: Arch, rng: random.Random) -> Arch:
        """Each choice from either parent; what neither made is drawn. The first parent if the rule allows no mixture."""

        def mixed() -> Arch | None:
            names = [name for name in self.choices if name in first or name in second]
            pairs = {name: [parent[name] for parent in (first, second) if name in parent] for name in names}
            return self._complete({name: rng.choice(values) for name, values in pairs.items()}, rng)

        return next(filter(None, (mixed() for _ in range(CHANGES))), first)

    def encode(self, arch: Arch) -> tuple[float, ...]:
        """One-hot over all choices in order, zeros where a choice is closed. Its length is the same for every arch."""
        return tuple(
            float(name in arch and arch[name] == option)
            for name, choice in self.choices.items()
            for option in choice.options
        )

    def key(self, arch: Arch) -> Any:
        """What `arch` shares with every arch that computes the same function."""
        return arch if self.same is None else self.same(arch)

    @functools.cached_property
    def size(self) -> int:
        """How many archs there are: counted without building any where there is no rule and no condition."""
        if self.legal is None and not any(choice.when for choice in self.choices.values()):
            return math.prod(len(choice.options) for choice in self.choices.values())
        if self.legal is None:
            return self._count()
        return sum(1 for _ in self.enumerate())

    def enumerate(self) -> Iterator[Arch]:
        """Every legal arch once, the last choice changing fastest."""
        names = list(self.choices)

        def below(place: int, taken: dict[str, Value]) -> Iterator[Arch]:
            if place == len(names):
                arch = Arch(tuple(taken.items()))
                if self.legal is None or self.legal(arch):
                    yield arch
                return
            choice = self.choices[names[place]]
            if not choice.open(taken):
                yield from below(place + 1, taken)
                return
            for option in choice.options:
                yield from below(place + 1, {**taken, names[place]: option})

        return below(0, {})

    def _count(self) -> int:
        """Archs without a rule: what follows depends on those earlier choices alone that later conditions name."""
        names = list(self.choices)
        asked = [
            {other for name in names[place:] for other in self.choices[name].when} for place in range(len(names) + 1)
        ]

        @functools.cache
        def below(place: int, told: tuple[tuple[str, Value], ...]) -> int:
            if place == len(names):
                return 1
            name, choice = names[place], self.choices[names[place]]
            kept = tuple(item for item in told if item[0] in asked[place + 1])
            if not choice.open(dict(told)):
                return below(place + 1, kept)
            if name not in asked[place + 1]:
                return len(choice.options) * below(place + 1, kept)
            return sum(below(place + 1, (*kept, (name, option))) for option in choice.options)

        return below(0, ())

    def _complete(self, wanted: Mapping[str, Value], rng: random.Random | None) -> Arch | None:
        """The wanted options where they are open, others drawn (the first option without `rng`); None if illegal."""
        taken = dict[str, Value]()
        for name, choice in self.choices.items():
            if choice.open(taken):
                if name in wanted:
                    taken[name] = wanted[name]
                else:
                    taken[name] = choice.options[0] if rng is None else rng.choice(choice.options)
        arch = Arch(tuple(taken.items()))
        return arch if self.legal is None or self.legal(arch) else None


def _place(value: Any, options: tuple[Value, ...]) -> int:
    """Where an option stands; True is not 1, and a text is no number, but 2 and 2.0 from JSON are the same."""
    for place, option in enumerate(options):
        if option == value and isinstance(option, bool) == isinstance(value, bool):
            return place
    return -1


def _in(value: Any, options: tuple[Value, ...]) -> bool:
    return _place(value, options) >= 0
