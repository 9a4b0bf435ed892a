"""How alike the networks of a run are: soft, for examples and for a report; no proposal is refused for being like another.

The measure is `befit.propose.fingerprint.similarity`. A run that goes on writing the same network with other numbers has a high
similarity and few surprises left; one that grows ever more alike has settled.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from statistics import fmean, median
from typing import Any

from befit.errors import BadProposal
from befit.propose.archive import Scored
from befit.propose.fingerprint import runs, similarity
from befit.propose.funnel import ranked
from befit.propose.proposal import Proposal

MOST = 200
"""Networks that are compared, the best of a run: their pairs grow with the square."""
SHOWN = 16
"""Networks of the map."""


def alike(rows: Sequence[Proposal], *, most: int = MOST, shown: int = SHOWN) -> dict[str, Any]:
    """Similarities among the best networks that were trained, as plain values.

    Returns networks (how many were compared), mean (of all pairs), nearest (median over the networks of the similarity to the
    one most like it; None below two networks), names (arm, dataset, seed and number of the best) and matrix (of those,
    best first).
    """
    known = [(row, found) for row in ranked(rows)[:most] if (found := _runs(row.source)) is not None]
    near = {pair: similarity(known[pair[0]][1], known[pair[1]][1]) for pair in combinations(range(len(known)), 2)}
    closest = [0.0] * len(known)
    for pair, value in near.items():
        for at in pair:
            closest[at] = max(closest[at], value)
    first = range(min(shown, len(known)))
    return {
        "networks": len(known),
        "mean": fmean(near.values()) if near else None,
        "nearest": median(closest) if near else None,
        "names": [{name: vars(known[at][0])[name] for name in ("arm", "dataset", "seed", "number")} for at in first],
        "matrix": [[1.0 if a == b else near[min(a, b), max(a, b)] for b in first] for a in first],
    }


def _runs(source: str) -> frozenset[int] | None:
    try:
        return runs(source)
    except BadProposal:  # a genome's text, say
        return None


def similar(a: Scored, b: Scored) -> float:
    """How alike two networks are, 0 .. 1: shared runs of their trees, or shared lines of their genomes."""
    return similarity(_pieces(a.text), _pieces(b.text))


@lru_cache(maxsize=4096)
def _pieces(text: str) -> frozenset[int]:
    try:
        return runs(text)
    except BadProposal:
        return frozenset(hash(line) for line in text.splitlines())
