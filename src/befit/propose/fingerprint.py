"""The fingerprint of a proposal: a ladder of keys, each of which sees through more, and equal keys mean the same network.

    whitespace   the text, without the layout that Python does not read                       (befit.propose.layout)
    tree         the network as a syntax tree, without names, comments and forms of writing   (befit.propose.tree)
    recipe       the training that the file brings, in the same way: another recipe is a repeated measurement, no duplicate
    graph        the operations that the built network carries out                             (befit.propose.graph)

The first three read the file and never run it; the last one builds the network. A shared key of a lower rung means shared
keys on the rungs above it that concern the network. No rung is complete (that two programs do the same cannot be decided);
the tree and the layout are sound: programs that do different things have different keys, but for collisions of a hash of
128 bits. What the graph leaves out is said where it is made.

Near-duplicates have no key; `similarity` compares runs of tokens of the trees, and is for reports and diversity, never for
turning a proposal down.
"""

import re
from dataclasses import dataclass
from zlib import crc32

from befit.propose.layout import hash_of, layout_key, lemur_md5
from befit.propose.tree import write

RUN = 5
"""Tokens in a run: about one call with its arguments."""

_NUMBERED = re.compile(r"r?[avg]\d+$")


@dataclass(frozen=True, kw_only=True)
class Keys:
    """The rungs that need no execution, 32 hex digits each."""

    whitespace: str
    tree: str
    recipe: str
    lemur: str
    """LEMUR's MD5 of the text without white space: not sound, for finding a file there."""


def keys_of(source: str) -> Keys:
    """Keys of a file's text. `BadProposal` if it is not Python or has no class `Net`."""
    written = write(source)
    return Keys(
        whitespace=layout_key(source),
        tree=hash_of("\n".join(written.network)),
        recipe=hash_of("\n".join(written.recipe)),
        lemur=lemur_md5(source),
    )


def runs(source: str) -> frozenset[int]:
    """Hashes of all runs of `RUN` tokens of a network's tree; names do not count, whatever their number."""
    tokens = [_NUMBERED.sub("_", token) for token in write(source).network]
    return frozenset(crc32("\n".join(tokens[at : at + RUN]).encode()) for at in range(max(1, len(tokens) - RUN + 1)))


def similarity(a: frozenset[int], b: frozenset[int]) -> float:
    """Jaccard similarity of two files' `runs`, 0 to 1: the share of all runs that both have."""
    return len(a & b) / len(a | b)
