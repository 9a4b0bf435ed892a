"""Put the items of a task to a model: what comes out is one number an item for each way of judging.

`choice` and `exact` say how often the model is right; the others are log-likelihoods, which tell two models apart long before
either is right: how likely it finds the right continuation (`nats`), by how much it prefers it to the others (`doubt`), and how
much the text helps (`gain`: what the answer costs without its source, minus what it costs with it).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from befit.lm.answers import Likelihood, Speaker
from befit.lm.tasks.item import Item, Task
from befit.progress import Progress, silent

SPARE = 8
"""Tokens that an answer may have beyond five quarters of those of the right one."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One way of judging, over all items of a task."""

    name: str
    """choice, exact, nats, doubt, gain; or the harness's name of a metric."""
    about: str = ""
    """In words."""
    values: tuple[float, ...]
    """One for each item, in their order."""
    chance: float | None = None
    """The mean of a model that guesses; none where the measure is no share of right answers."""
    higher: bool = True
    """Whether more is better."""
    labels: tuple[Mapping[str, str], ...] = field(default=())
    """What the items are told by; as many as values, or none."""


def ask(
    task: Task, asked: Sequence[Item], speaker: Speaker, *, write: bool = True, progress: Progress = silent
) -> dict[str, Measure]:
    """All measures of one model. `write`: also let it write answers of its own, token by token."""
    told = options(asked, speaker, progress=progress)
    right = [row[item.right] for item, row in zip(asked, told, strict=True)]
    nats = [-one.total / one.tokens for one in right]
    values = {
        "choice": [_first(row, item.right) for item, row in zip(asked, told, strict=True)],
        "nats": nats,
        "doubt": [doubt([one.total for one in row], item.right) for item, row in zip(asked, told, strict=True)],
    }
    if all(item.without for item in asked):
        blind = speaker.likelihoods([speaker.pair(item.without, item.answer) for item in asked], progress=progress)
        values["gain"] = [-one.total / one.tokens - own for one, own in zip(blind, nats, strict=True)]
    if write:
        limits = [5 * speaker.count(item.answer) // 4 + SPARE for item in asked]
        texts = speaker.write([i.prompt for i in asked], limits, [task.stops] * len(asked), progress=progress)
        values["exact"] = [float(task.correct(item, text)) for item, text in zip(asked, texts, strict=True)]
    chance = math.fsum(1 / len(item.options) for item in asked) / len(asked)
    labels = tuple(item.labels for item in asked)
    known = {"choice": chance, "exact": 0.0}
    return {
        name: Measure(
            name=name,
            about=_ABOUT[name],
            values=tuple(each),
            chance=known.get(name),
            higher=name not in ("nats", "doubt"),
            labels=labels,
        )
        for name, each in values.items()
    }


def options(asked: Sequence[Item], speaker: Speaker, *, progress: Progress = silent) -> list[list[Likelihood]]:
    """For each item, the likelihood of each of its options."""
    pairs = [speaker.pair(item.prompt, option) for item in asked for option in item.options]
    told = iter(speaker.likelihoods(pairs, progress=progress))
    return [[next(told) for _ in item.options] for item in asked]


def doubt(totals: Sequence[float], right: int) -> float:
    """-log of the right option's probability among the options, in nats: 0 is certain, log(options) is no idea."""
    top = max(totals)
    return top - totals[right] + math.log(math.fsum(math.exp(total - top) for total in totals))


def _first(row: Sequence[Likelihood], right: int) -> float:
    """1 if the right option is the most likely one; shared evenly where others are as likely."""
    best = max(one.total for one in row)
    return (row[right].total == best) / sum(one.total == best for one in row)


_ABOUT = {
    "choice": "right option is the most likely",
    "exact": "written answer is right",
    "nats": "nats a token of the right answer",
    "doubt": "nats of the right option among the options",
    "gain": "nats a token that the text saves",
}
