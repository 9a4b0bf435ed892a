"""Needle: a number that is told once, somewhere in a long text, is asked for at its end.

Four places have numbers; the question names one. All four numbers stand in the text, so that copying any number is chance,
and finding the right one needs attention from the end back to the needle. Between them stand plain sentences that mean
nothing. `without` is the same text in which the needle has become one of these sentences.

After "needle in a haystack" (G. Kamradt, 2023) and the multi-key retrieval of RULER (Hsieh et al., arXiv 2404.06654).
"""

import random
import re
from collections.abc import Callable

from befit.errors import BadData
from befit.lm.tasks.item import Item, Task

_WHAT = ("harbor", "garden", "market", "station", "library", "bridge", "tower", "museum", "school", "factory")
_WHICH = ("silver", "northern", "old", "green", "quiet", "wooden", "upper", "golden", "narrow", "bright")
_WHO = ("painter", "farmer", "teacher", "sailor", "doctor", "baker", "driver", "writer", "singer", "neighbor")
_DID = ("looked at", "walked around", "talked about", "waited near", "forgot", "remembered", "drew", "passed by")
_THING = ("river", "cloud", "window", "letter", "clock", "tree", "road", "lamp", "table", "boat", "stone", "door")
_WHEN = ("in the morning", "at noon", "after lunch", "before dinner", "on Monday", "last week", "every day", "at night")
PLACES = 4
"""Numbers in a text, the needle's among them."""


def _draw(rng: random.Random, level: int, depth: float, tokens: Callable[[str], int]) -> Item:
    """A text of `level` tokens at most, question and answer included, with the needle at `depth` of its sentences."""
    names = rng.sample([f"{a} {b}" for a in _WHICH for b in _WHAT], PLACES)
    numbers = [str(number) for number in rng.sample(range(1000, 10_000), PLACES)]
    facts = [f"The number of the {name} is {number}." for name, number in zip(names, numbers, strict=True)]
    question = f"\n\nQuestion: What is the number of the {names[0]}?\nAnswer: The number of the {names[0]} is"
    used = sum(tokens(f" {fact}") for fact in facts) + tokens(question) + max(tokens(f" {n}.") for n in numbers)
    filler = list[str]()
    while (used := used + tokens(" " + (sentence := _sentence(rng)))) <= level:
        filler.append(sentence)
    if not filler:
        raise BadData(f"needle: a text with {PLACES} numbers does not fit in {level} tokens; give 256 or more")
    sentences = filler[1:]
    for fact in facts[1:]:
        sentences.insert(rng.randint(0, len(sentences)), fact)
    place = round(depth * len(sentences))
    needle, blank = ([*sentences[:place], one, *sentences[place:]] for one in (facts[0], filler[0]))
    order = rng.sample(range(PLACES), PLACES)
    return Item(
        prompt=" ".join(needle) + question,
        without=" ".join(blank) + question,
        options=tuple(f" {numbers[i]}" for i in order),
        right=order.index(0),
        labels={"tokens": str(level), "depth": f"{min(int(4 * depth), 3) * 25 + 12.5:g}%"},
    )


def _sentence(rng: random.Random) -> str:
    return f"The {rng.choice(_WHO)} {rng.choice(_DID)} the {rng.choice(_THING)} {rng.choice(_WHEN)}."


def _correct(item: Item, text: str) -> bool:
    """The first number written is the needle's."""
    found = re.search(r"\d+", text)
    return found is not None and found.group() == item.answer.strip()


NEEDLE = Task(
    name="needle",
    about="a number told once in a long text",
    unit="tokens",
    levels=(256, 1024, 4096),
    draw=_draw,
    correct=_correct,
    stops=("\n", ". "),
)
"""Levels are lengths of the whole text in tokens; results are told by length and by the needle's depth."""
