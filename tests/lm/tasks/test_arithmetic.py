"""Every worked step is computed again; wrong solutions are wrong in one step only."""

import re

from befit.lm.tasks.arithmetic import ARITHMETIC, OPTIONS
from befit.lm.tasks.item import items

STEP = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)\.")


def wrong_steps(worked: str) -> int:
    return sum(eval(f"{a}{op}{b}") != int(c) for a, op, b, c in STEP.findall(worked))


def test_solutions_are_right_and_the_others_wrong_in_one_step() -> None:
    for item in items(ARITHMETIC, seed=0, count=90, tokens=len):
        steps = int(item.labels["steps"])
        *shots, asked = item.prompt.split("\n\n")
        for worked in (*shots, item.answer):
            assert wrong_steps(worked) == 0 and len(STEP.findall(worked)) == steps
            results = [int(found[3]) for found in STEP.findall(worked)]
            assert worked.endswith(f"Answer: {results[-1]}") and min(results) >= 0 and max(results) < 1000
        assert len(item.options) == OPTIONS
        for option in item.options:
            assert (wrong_steps(option) == 1) == (option != item.answer)
        value, *numbers = map(int, re.findall(r"\d+", asked))
        for word, number in zip(re.findall(r"Add|Subtract|Multiply", asked), numbers, strict=True):
            value = {"Add": value + number, "Subtract": value - number, "Multiply": value * number}[word]
        assert item.answer.endswith(f"Answer: {value}")


def test_the_last_answer_counts_and_work_alone_does_not() -> None:
    item = items(ARITHMETIC, seed=0, count=1, tokens=len)[0]
    result = item.answer.rsplit(" ", 1)[-1]
    assert ARITHMETIC.correct(item, f" it is easy. Answer: {result}.")
    assert not ARITHMETIC.correct(item, f" Answer: {result} Answer: 1{result}")
    assert not ARITHMETIC.correct(item, f" = {result}") and not ARITHMETIC.correct(item, f" Answer: {result}0")
