"""True KL of whole children, and the local search on it."""

import random
from dataclasses import replace

import pytest
from tests import tiny
from tests.puzzle.conftest import MakeLibrary
from tests.puzzle.test_prices import WORK, prices_of, scores_of, space_of

from befit.arch.decoder import DecoderArch
from befit.arch.decoder_space import DecoderSpace
from befit.budget import Budget
from befit.lm.quality import evaluate
from befit.puzzle import polish as module
from befit.puzzle.choose import affordable
from befit.puzzle.polish import Judge, PolishConfig, Tried, TrueKl, polish

TOKENS = tiny.tokens(5, 12, seed=3)


def test_true_kl_is_that_of_the_evaluation(make_library: MakeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    library, rng = make_library("qwen3"), random.Random(0)
    archs = [library.space.sample(rng) for _ in range(4)]
    kept = TrueKl(library, TOKENS, batch=2)
    monkeypatch.setattr(module, "KEPT_TERMS", 0)
    anew = TrueKl(library, TOKENS, batch=2)
    for arch in archs:
        truth = evaluate(library.assemble(arch), TOKENS, library.parent).kl
        assert kept(arch) == pytest.approx(truth, rel=1e-4, abs=1e-6)
        assert anew(arch) == pytest.approx(truth, rel=1e-4, abs=1e-6)
    assert len(kept.terms) == 3 and not anew.terms
    assert kept(library.space.shape.arch) == 0
    monkeypatch.setattr(library, "compose", None)
    assert kept(archs[0]) == kept.known[archs[0]]  # remembered: nothing is assembled again


def judge_of(space: DecoderSpace, share: float) -> Judge:
    """Scores mislead: what is true also punishes two equal layers in a row."""
    prices, scores = prices_of(space, WORK), scores_of(space)
    own = space.shape.arch
    fits = affordable(prices, Budget.parse(f"memory={share:.0%}").resolve(prices.arch(own)))

    def true_kl(arch: DecoderArch) -> float:
        pairs = zip(arch.blocks, arch.blocks[1:], strict=False)
        return scores.total(arch) + sum(a.attention == b.attention for a, b in pairs)

    return Judge(true_kls=lambda archs: list(map(true_kl, archs)), predicted=scores.total, affordable=fits)


def search(seed: int, config: PolishConfig) -> tuple[list[DecoderArch], tuple[Tried, ...], Judge]:
    space = space_of(layers=4)
    judge, rng = judge_of(space, 0.7), random.Random(seed)
    starts = [arch for arch in (space.sample(rng) for _ in range(200)) if judge.affordable(arch)][:2]
    assert len(starts) == 2
    return starts, polish([(f"start {i}", arch) for i, arch in enumerate(starts)], space, judge, config), judge


@pytest.mark.parametrize("seed", range(4))
def test_the_search_improves_within_the_budget(seed: int) -> None:
    config = PolishConfig(evaluations=30, drawn=300, at_once=4)
    starts, tried, judge = search(seed, config)
    assert tried[0].kl < min(judge.true_kls(starts))
    assert [t.kl for t in tried] == sorted(t.kl for t in tried)
    assert judge.true_kls([t.arch for t in tried]) == [t.kl for t in tried]
    assert all(judge.affordable(t.arch) for t in tried)
    assert {arch for arch in starts} < {t.arch for t in tried}
    assert len({t.arch for t in tried}) == len(tried) <= 30
    assert all(space_of(layers=4).contains(t.arch) for t in tried)
    assert search(seed, config)[1] == tried


def test_moves_exchange_between_layers() -> None:
    """From a start that fills the budget, one layer can only grow if another shrinks."""
    starts, tried, _ = search(0, PolishConfig(evaluations=40, drawn=500, at_once=8))
    changes = [
        min(sum(a != b for a, b in zip(t.arch.blocks, u.arch.blocks, strict=True)) for u in tried if u != t)
        for t in tried
    ]
    assert max(changes[:5]) <= 2 and len(tried) > len(starts)


def test_no_more_children_are_measured_than_allowed() -> None:
    for evaluations in (1, 2, 7):
        starts, tried, _ = search(1, PolishConfig(evaluations=evaluations, drawn=200, at_once=4))
        assert len(tried) == evaluations
        assert starts[0] in [t.arch for t in tried]


def test_a_search_with_nowhere_to_go_ends() -> None:
    space = space_of(layers=1)
    judge = replace(judge_of(space, 1.0), affordable=lambda arch: arch == space.shape.arch)
    tried = polish([("own", space.shape.arch)], space, judge, PolishConfig(evaluations=1000, drawn=50))
    assert [t.arch for t in tried] == [space.shape.arch] and tried[0].origin == "own"
