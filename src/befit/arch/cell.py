"""The cell space of NAS-Bench-201: five operations on the six edges of a cell with four nodes, 15,625 cells.

    arch = parse("|nor_conv_3x3~0|+|nor_conv_3x3~0|none~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|")

Node 0 is the cell's input, node 3 its output; every node sums what its edges bring from earlier nodes. Source: Dong and Yang,
NAS-Bench-201 (ICLR 2020), section 2; the text form is the benchmark's own.
"""

import functools
import re
from collections import Counter
from itertools import product

from befit.arch.space import Arch, Choice, Space
from befit.errors import IllegalArch

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""The benchmark's names, in its order."""

EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""From node, to node, in the order of the text form."""

NAMES = tuple(f"{a}->{b}" for a, b in EDGES)
"""The choices' names, an edge each."""

_TERM = re.compile(r"(\w+)~(\d)")


def cell_space() -> Space:
    """All 15,625 cells; two that differ only in what no path reaches, or in a skip, share a key."""
    return Space({name: Choice(*OPS) for name in NAMES}, same=canonical, features=paths)


def parse(text: str) -> Arch:
    """Read the benchmark's text form. Raises `IllegalArch` for anything else."""
    terms = [
        (op, int(source), node) for node, part in enumerate(text.split("+"), 1) for op, source in _TERM.findall(part)
    ]
    found = {f"{source}->{node}": op for op, source, node in terms}
    if tuple(found) != NAMES or unparse(found) != text:
        raise IllegalArch(f"cell: expected |op~0|+|op~0|op~1|+|op~0|op~1|op~2| with operations {OPS}, got {text!r}")
    return cell_space().arch(found)


def unparse(arch: Arch | dict[str, str]) -> str:
    """The benchmark's text form of a cell."""
    nodes = ["".join(f"|{arch[f'{a}->{b}']}~{a}" for a, b in EDGES if b == node) + "|" for node in (1, 2, 3)]
    return "+".join(nodes)


def ops(arch: Arch) -> dict[tuple[int, int], str]:
    """The operation on each edge."""
    return {edge: str(arch[name]) for edge, name in zip(EDGES, NAMES, strict=True)}


@functools.lru_cache(maxsize=20_000)
def canonical(arch: Arch) -> tuple[str, ...]:
    """What a cell computes, written out as a sum from its input x, and how often each of its convolutions stands in that sum.

    A skip is its source, `none` and what comes of it is nothing, sums commute. The counts keep apart a convolution used
    twice from two convolutions of the same kind, each with weights of its own.
    """
    own = ops(arch)
    nodes: list[list[tuple[str, tuple[str, ...]]]] = [[("x", ())]]  # each summand, and the convolutions it went through
    for node in (1, 2, 3):
        terms = list[tuple[str, tuple[str, ...]]]()
        for source in range(node):
            op, inner = own[source, node], nodes[source]
            if op == "skip_connect":
                terms += inner
            elif op != "none" and inner:
                text = f"{op}({'+'.join(sorted(term for term, _ in inner))})"
                below = tuple(one for _, through in inner for one in through)
                terms.append((text, below if op == "avg_pool_3x3" else (*below, f"{text}@{source}{node}")))
        nodes.append(terms)
    used = Counter(one for _, through in nodes[3] for one in through)
    counts = sorted(f"{count}*{one.partition('@')[0]}" for one, count in used.items())
    return ("+".join(sorted(term for term, _ in nodes[3])), *counts)


def _all_paths() -> tuple[tuple[str, ...], ...]:
    live = OPS[1:]
    return tuple(path for length in (1, 2, 3) for path in product(live, repeat=length))


PATHS = _all_paths()
"""Every row of operations from input to output that a cell can have: 4 + 16 + 64."""

_PLACE = {path: place for place, path in enumerate(PATHS)}


@functools.lru_cache(maxsize=20_000)
def paths(arch: Arch) -> tuple[float, ...]:
    """Path encoding: 1 for each row of operations that leads from input to output (White et al., arXiv 1910.11858)."""
    own, found = ops(arch), [0.0] * len(PATHS)

    def walk(node: int, taken: tuple[str, ...]) -> None:
        if node == 3:
            found[_PLACE[taken]] = 1.0
            return
        for following in range(node + 1, 4):
            op = own[node, following]
            if op != "none":
                walk(following, (*taken, op))

    walk(0, ())
    return tuple(found)
