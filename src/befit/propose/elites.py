"""Which of its own networks a model learns from, and how much from each: the cross-entropy method (Rubinstein 1999).

The scored networks are ranked; each has a level, the tenth of the ranking in which it lies, and the best share of them, the
elites, weigh more than the others. Nothing is kept between calls: levels and weights follow from the rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from befit.errors import BadData
from befit.propose.archive import Scored

LEVELS = 10
"""Levels of a score: tenths of the ranking, 0 the worst, 9 the best."""


@dataclass(frozen=True, kw_only=True)
class Pupil:
    """A scored network as something to learn from."""

    scored: Scored
    """The network."""
    level: int
    """0 .. 9."""
    elite: bool
    """Whether it is among the best."""


def pupils(rows: Sequence[Scored], *, share: float) -> list[Pupil]:
    """The networks, each once (the first with its key), in order of their numbers; the best `share` (0 .. 1) are elites.

    A level is the tenth that holds the share of networks not better than it, so that the best are always on level 9 and equal
    accuracies on one level. At least one network is an elite, and all that are as good as the last of them.
    """
    if not 0 < share <= 1:
        raise BadData(f"elites: their share must be above 0 and at most 1, got {share}")
    once = dict[str, Scored]()
    for one in sorted(rows, key=lambda one: one.number):
        once.setdefault(one.key, one)
    accuracies = sorted((one.accuracy for one in once.values()), reverse=True)
    count = len(accuracies)
    least = accuracies[max(1, round(share * count)) - 1] if accuracies else 0.0
    found = list[Pupil]()
    for one in once.values():
        not_better = sum(accuracy <= one.accuracy for accuracy in accuracies)
        level = (LEVELS * not_better - 1) // count
        found.append(Pupil(scored=one, level=level, elite=one.accuracy >= least))
    return found
