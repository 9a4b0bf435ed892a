"""Arithmetic: a few sums and products one after the other, with worked steps; the last number counts.

Two examples of as many steps come first. To choose among are four complete solutions: in three of them one step is wrong and
all that follow are computed from it, so nothing but the wrong step gives them away.
"""

import random
import re
from collections.abc import Callable

from befit.lm.tasks.item import Item, Task

Step = tuple[str, int]
"""An operation, one of + - *, and its second number."""

SHOTS, OPTIONS = 2, 4
_WORDS = {"+": "Add", "-": "Subtract", "*": "Multiply by"}


def _draw(rng: random.Random, level: int, place: float, tokens: Callable[[str], int]) -> Item:
    """A problem of `level` steps whose result stands nowhere in the prompt."""
    del place, tokens
    while True:
        shots, (start, steps) = [_problem(rng, level) for _ in range(SHOTS)], _problem(rng, level)
        examples = "".join(f"{_asked(*shot)}{_worked(*_results(*shot))}\n\n" for shot in shots)
        prompt = examples + _asked(start, steps)
        results = _results(start, steps)[2]
        if str(results[-1]) not in re.findall(r"\d+", prompt):
            break
    answers = {results[-1]: _worked(start, steps, results)}
    while len(answers) < OPTIONS:
        wrong = _results(start, steps, slip=(rng.randrange(level), rng.choice((-10, -2, -1, 1, 2, 10))))[2]
        if min(wrong) >= 0:
            answers.setdefault(wrong[-1], _worked(start, steps, wrong))
    options = list(answers.values())
    rng.shuffle(options)
    right = options.index(answers[results[-1]])
    return Item(prompt=prompt, options=tuple(options), right=right, labels={"steps": str(level)})


def _problem(rng: random.Random, steps: int) -> tuple[int, list[Step]]:
    """A start and operations that stay within 0 .. 999."""
    start = value = rng.randint(2, 30)
    chosen = list[Step]()
    for _ in range(steps):
        operation = rng.choice("+-*" if value <= 60 else "+-")
        number = rng.randint(2, 9) if operation == "*" else rng.randint(2, max(2, min(30, value)))
        if operation == "-" and number > value:
            operation = "+"
        chosen.append((operation, number))
        value = _applied(value, (operation, number))
    return start, chosen


def _applied(value: int, step: Step) -> int:
    operation, number = step
    return value + number if operation == "+" else value - number if operation == "-" else value * number


def _results(start: int, steps: list[Step], slip: tuple[int, int] = (-1, 0)) -> tuple[int, list[Step], list[int]]:
    """The number after each step; that of step `slip[0]` is off by `slip[1]`."""
    results = list[int]()
    for number, step in enumerate(steps):
        results.append(_applied(results[-1] if results else start, step) + (slip[1] if number == slip[0] else 0))
    return start, steps, results


def _asked(start: int, steps: list[Step]) -> str:
    told = " ".join(f"{_WORDS[operation]} {number}." for operation, number in steps)
    return f"Question: Start with {start}. {told} What is the result?\nWork:"


def _worked(start: int, steps: list[Step], results: list[int]) -> str:
    values = [start, *results]
    lines = [f" {values[i]} {op} {number} = {values[i + 1]}." for i, (op, number) in enumerate(steps)]
    return "".join(lines) + f" Answer: {results[-1]}"


def _correct(item: Item, text: str) -> bool:
    """The number after the last "Answer:" is the right one."""
    found = re.findall(r"Answer: *(-?\d+)", text)
    return bool(found) and found[-1] == item.answer.rsplit(" ", 1)[-1]


ARITHMETIC = Task(
    name="arithmetic",
    about="sums and products in worked steps",
    unit="steps",
    levels=(1, 2, 4),
    draw=_draw,
    correct=_correct,
)
"""Levels are numbers of steps."""
