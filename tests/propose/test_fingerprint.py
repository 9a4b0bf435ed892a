"""The table of pairs, similarity, and what no rewriting of a generated network may change."""

import ast
import re
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from befit.errors import BadProposal
from befit.propose.fingerprint import keys_of, runs, similarity
from befit.propose.grammar import draw
from befit.propose.inspection import inspected
from befit.propose.network import PRM, Maker
from befit.propose.rendering import Style, render
from propose.pairs import BASE, OTHER, PAIRS, SAME, Pair, edited

ARGUMENTS = {"in_shape": (2, 3, 32, 32), "out_shape": (10,), "prm": PRM}
RUNGS = ("whitespace", "tree", "graph", "recipe")


def graph_key(source: str) -> str:
    return inspected(Maker(source, ARGUMENTS), ARGUMENTS["in_shape"], 10, recipe=False)["graph"]


def _graph(source: str) -> str | None:
    try:
        return graph_key(source) or None
    except (ImportError, AttributeError, RuntimeError):
        return None  # equal to nothing


def says(pair: Pair) -> str:
    first, second = keys_of(pair.a), keys_of(pair.b)
    one = _graph(pair.a)
    graphs = one is not None and one == _graph(pair.b)
    same = (first.whitespace == second.whitespace, first.tree == second.tree, graphs, first.recipe == second.recipe)
    return "".join("=" if equal else "!" for equal in same)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_every_rung_says_what_it_must(pair: Pair) -> None:
    assert dict(zip(RUNGS, says(pair), strict=True)) == dict(zip(RUNGS, pair.says, strict=True))


def test_the_table_is_long_and_has_no_pair_twice() -> None:
    assert len(PAIRS) >= 40 and len({pair.name for pair in PAIRS}) == len(PAIRS)
    assert all(pair.a != pair.b for pair in PAIRS)
    assert len(SAME) >= 20 <= len(OTHER)


@pytest.mark.parametrize("name", ["statement out of the loop", "blank in a string"])
def test_where_lemur_takes_two_programs_for_one(name: str) -> None:
    pair = next(pair for pair in PAIRS if pair.name == name)
    assert keys_of(pair.a).lemur == keys_of(pair.b).lemur
    assert set(says(pair)[:3]) == {"!"}


def test_a_rung_sees_what_the_rungs_below_see() -> None:
    """Equal text, equal tree, equal graph: the ladder may stop at the first hit."""
    for pair in PAIRS:
        text, tree, graph, recipe = pair.says
        assert (text == "!" or (tree, recipe) == ("=", "=")) and (tree == "!" or graph == "=")


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_cosmetic_changes_keep_the_keys(seed: int) -> None:
    random = Random(seed)
    plan = draw(random)
    plain, styled = render(plan), render(plan, Style.draw(random))
    rewritten = ast.unparse(ast.parse(styled))
    commented = re.sub(r"(?m)^( *)(self\.|x = |return )", r"\1# why\n\1\2", plain)
    keys = [(one.tree, one.recipe) for one in map(keys_of, (plain, styled, rewritten, commented))]
    assert len(set(keys)) == 1


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_other_plans_have_other_keys(seed: int) -> None:
    random = Random(seed)
    one, two = draw(random), draw(random)
    same = keys_of(render(one)), keys_of(render(two, Style.draw(random)))
    if same[0].tree == same[1].tree:
        assert graph_key(render(one)) == graph_key(render(two)) != ""


def test_similarity() -> None:
    whole, renamed = runs(BASE), runs(edited(("self.stem", "self.entry"), ("Block", "Unit")))
    near = runs(edited(("F.relu", "F.gelu")))
    far = runs(render(draw(Random(3), family="attention")))
    assert similarity(whole, renamed) == similarity(whole, whole) == 1.0
    assert 1 > similarity(whole, near) > 0.8 and 0.5 > similarity(whole, far) > 0
    assert similarity(near, whole) == similarity(whole, near)


@pytest.mark.parametrize(
    ("source", "reason", "words"),
    [
        ("x = ", "parse", "line 1"),
        ("class Net:\n  def f(self):\n x", "parse", "line 3"),
        ("x = 1\0", "parse", "null bytes"),
        ("", "contract", "no class Net"),
        ("def Net(): ...", "contract", "in_shape"),
        ("class Net:\n  x = " + "(" * 500 + ")" * 500, "parse", "not Python"),
        ("class Net:\n  x = " + " + ".join("y" * 900), "parse", "too deeply"),
        ("class Net:\n  x = " + " + ".join("y" * 9000), "parse", "too deeply"),
        ("x" * 200_001, "too-large", "at most 200,000"),
    ],
)
def test_what_is_no_proposal(source: str, reason: str, words: str) -> None:
    with pytest.raises(BadProposal, match=re.escape(words)) as caught:
        keys_of(source)
    assert caught.value.reason == reason and "line None" not in str(caught.value)
