"""Cells: the text form both ways, and two cells with one key compute one function of the input."""

import csv
import gzip
import itertools
import random
from collections import defaultdict

import numpy as np
import pytest

from befit.arch.cell import EDGES, OPS, PATHS, canonical, cell_space, ops, parse, paths, unparse
from befit.arch.space import Arch
from befit.errors import IllegalArch
from published import DATA

SPACE = cell_space()


def value(arch: Arch, weights: dict[tuple[int, int], float]) -> float:
    """The cell's output for input 1 with stand-ins for the operations, no two of which commute; weights by edge."""
    own, nodes = ops(arch), [np.float64(1.3)]
    for node in (1, 2, 3):
        total = np.float64(0)
        for source in range(node):
            x, w = nodes[source], weights[source, node]
            total += {
                "none": 0.0,
                "skip_connect": x,
                "nor_conv_1x1": np.sin(w * x),
                "nor_conv_3x3": w * np.tanh(x) * x,
                "avg_pool_3x3": np.log1p(x * x),
            }[own[source, node]]
        nodes.append(total)
    return float(nodes[3])


def test_there_are_15625_cells_and_the_text_form_goes_both_ways() -> None:
    assert SPACE.size == 15_625
    rng = random.Random(0)
    for _ in range(200):
        arch = SPACE.sample(rng)
        assert parse(unparse(arch)) == arch


@pytest.mark.parametrize(
    "text", ["", "|none~0|", "|none~0|+|none~0|none~1|+|none~0|none~1|none~1|", "|sep~0|+|a~0|b~1|+|a~0|b~1|c~2|"]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(IllegalArch, match=r"cell|is no option"):
        parse(text)


def test_one_key_means_one_function_when_equal_operations_weigh_the_same() -> None:
    weights = dict.fromkeys(EDGES, 0.7)
    outputs = defaultdict[object, set[float]](set)
    for arch in SPACE.enumerate():
        outputs[canonical(arch)].add(round(value(arch, weights), 9))
    assert all(len(found) == 1 for found in outputs.values())
    assert len(outputs) == 5260


def test_a_convolution_used_twice_is_not_two_convolutions() -> None:
    twice = parse("|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|skip_connect~1|skip_connect~2|")
    two = parse("|nor_conv_3x3~0|+|nor_conv_3x3~0|none~1|+|none~0|skip_connect~1|skip_connect~2|")
    swapped = parse("|none~0|+|nor_conv_3x3~0|none~1|+|nor_conv_3x3~0|none~1|skip_connect~2|")
    assert canonical(twice) != canonical(two) == canonical(swapped)


def test_cells_without_a_path_share_the_key_of_nothing() -> None:
    dead = [arch for arch in SPACE.enumerate() if not any(paths(arch))]
    assert len(dead) == 341 and {canonical(arch) for arch in dead} == {("",)}  # published: 341 cells at chance


def test_paths_are_those_of_brute_force() -> None:
    rng = random.Random(1)
    for _ in range(100):
        arch = SPACE.sample(rng)
        own = ops(arch)
        found = set[tuple[str, ...]]()
        for between in itertools.chain.from_iterable(itertools.combinations((1, 2), n) for n in range(3)):
            row = tuple(own[edge] for edge in itertools.pairwise((0, *between, 3)))
            if "none" not in row:
                found.add(row)
        assert {path for path, there in zip(PATHS, paths(arch), strict=True) if there} == found
    assert len(PATHS) == 84 and len(OPS) == 5


@pytest.mark.data
def test_published_isomorphism_classes_are_not_split_but_by_shared_convolutions() -> None:
    classes = defaultdict[str, list[Arch]](list)
    with gzip.open(DATA / "nas_bench_201.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            classes[row["iso_rep"]].append(parse(row["arch"]))
    assert len(classes) == 6466
    for archs in classes.values():
        assert len({canonical(arch)[0] for arch in archs}) == 1
