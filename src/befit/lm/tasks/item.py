"""What a task is made of: prompts, the right continuation among wrong ones, and how an answer in free text is judged.

An item can be put to a model in two ways. A model that can follow the format writes its answer, which is right or wrong as a
whole. A model that can't is asked which of a few continuations it finds most likely; the log-likelihoods also say how sure it
is, which moves long before the first answer is right.

Items are drawn with `random.Random`, seeded by a text, so they are the same on every machine and under every Python.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from befit.errors import BadData

ATTEMPTS = 1000
"""Draws for one item that is new and fit to be asked, before the task is called too small for the number asked for."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question."""

    prompt: str
    """What the model is given, worked examples included. Continuations begin with a space."""
    options: tuple[str, ...]
    """Continuations to choose among, all different."""
    right: int
    """Index of the right one."""
    without: str = ""
    """The prompt with what the answer rests on taken out; empty where there is no such thing."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """What results are told by, such as {"tokens": "512", "depth": "50%"}."""

    def __post_init__(self) -> None:
        if not 0 <= self.right < len(self.options) or len(set(self.options)) < len(self.options):
            raise ValueError(f"an item needs different options and the index of the right one, got {self.options}")

    @property
    def answer(self) -> str:
        """The right continuation."""
        return self.options[self.right]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A source of items, and the judge of answers to them."""

    name: str
    """As the command line knows it."""
    about: str
    """What it asks, in a few words."""
    unit: str
    """What a level counts: tokens, steps, tools."""
    levels: tuple[int, ...]
    """Levels of difficulty asked unless others are named."""
    draw: Callable[[random.Random, int, float, Callable[[str], int]], Item]
    """An item from random numbers, a level, a place 0 .. 1 (the items of a level are spread over it evenly) and the
    number of tokens of a text."""
    correct: Callable[[Item, str], bool]
    """Whether a written answer is right; what follows the first of `stops` has been cut off."""
    stops: tuple[str, ...] = ("\n",)
    """Texts that end an answer."""


def items(
    task: Task, *, seed: int, count: int, tokens: Callable[[str], int], levels: tuple[int, ...] = ()
) -> tuple[Item, ...]:
    """`count` different items, dealt to the levels in turn; those of a smaller count come first in a larger one.

    `tokens` counts the tokens of a text. Raises `BadData` when a level is below 1 or has not so many different items.
    """
    levels = levels or task.levels
    if count < 1 or min(levels) < 1:
        raise BadData(
            f"{task.name} needs at least one item and levels of 1 or more, got {count} items, levels {levels}"
        )
    seen, drawn = set[str](), list[Item]()
    for number in range(count):
        turn, level = divmod(number, len(levels))
        drawn.append(next(_fresh(task, (seed, levels[level], turn), tokens, seen)))
    return tuple(drawn)


def _fresh(task: Task, key: tuple[int, int, int], tokens: Callable[[str], int], seen: set[str]) -> Iterator[Item]:
    """Items that were not drawn before, for a seed, a level and a number in it."""
    seed, level, turn = key
    for attempt in range(ATTEMPTS):
        rng = random.Random(f"{task.name} {seed} {level} {turn} {attempt}")
        item = task.draw(rng, level, golden(turn), tokens)
        if item.prompt not in seen:
            seen.add(item.prompt)
            yield item
    raise BadData(f"{task.name} has no more than {len(seen)} different items at level {level}; ask for fewer")


def golden(turn: int) -> float:
    """A sequence in 0 .. 1 whose every beginning is spread evenly (multiples of the golden ratio, modulo 1)."""
    return (0.5 + turn * 0.6180339887498949) % 1.0


def cut(text: str, stops: tuple[str, ...]) -> str:
    """A text up to the first of `stops`."""
    ends = [text.index(stop) for stop in stops if stop in text]
    return text[: min(ends, default=len(text))]
