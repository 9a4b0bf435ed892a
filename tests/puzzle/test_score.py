"""Scores with reuse against the naive way: every child assembled and run whole beside the whole parent."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests import tiny
from tests.puzzle.conftest import MakeLibrary
from torch import Tensor

from befit.arch.decoder import Block, DecoderArch
from befit.errors import BadData
from befit.lm.child import arch_of
from befit.lm.quality import evaluate
from befit.puzzle import score as module
from befit.puzzle.library import Library, free
from befit.puzzle.score import ScoreConfig, Scores, score, score_task

TOKENS = tiny.tokens(6, 12, seed=1)


def replaced(library: Library, layer: int, block: Block) -> Any:
    own = library.space.shape.arch.blocks
    return library.compose(DecoderArch(blocks=(*own[:layer], block, *own[layer + 1 :])))


@torch.no_grad()
def naive(parent: Any, child: Any, metric: str) -> float:
    """The score by its definition, from transformers' own outputs."""
    p, c = (m(TOKENS, output_hidden_states=True, use_cache=False) for m in (parent, child))
    if metric == "kl":
        logs = (m.logits.log_softmax(-1) for m in (c, p))
        return float(F.kl_div(*logs, reduction="none", log_target=True).sum(-1).mean())
    if metric == "loss":
        losses = [F.cross_entropy(m.logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()) for m in (c, p)]
        return float(losses[0] - losses[1])
    a, b = p.hidden_states[-1].flatten(1), c.hidden_states[-1].flatten(1)
    return float(((a - b).square().sum(1) / a.square().sum(1)).mean())


@pytest.mark.parametrize(
    ("metric", "family"),
    [("kl", "qwen3"), ("kl", "mistral"), ("loss", "llama"), ("hidden", "qwen2"), ("kl", tiny.HYBRID)],
)
def test_reuse_gives_the_numbers_of_whole_children(
    metric: str, family: str, make_library: MakeLibrary, tmp_path: Path
) -> None:
    library = make_library(family)
    found = score(library, TOKENS, ScoreConfig(metric=metric, joint="all", batch=4), folder=tmp_path)
    parent = tiny.original(family, 3)
    assert naive(parent, library.parent, metric) == pytest.approx(0, abs=1e-6)
    for layer, own in enumerate(library.space.shape.arch.blocks):
        options = library.space.blocks(layer)
        assert set(found.layers[layer]) == {block.name for block in options[1:]}
        assert found.block(layer, own) == 0
        for block in options[1:]:
            truth = naive(parent, replaced(library, layer, block), metric)
            assert found.block(layer, block) == pytest.approx(truth, abs=1e-5, rel=1e-5), (layer, block.name)
    assert len(options) == (5 if family == tiny.HYBRID else 5 * 4)


def test_without_room_for_the_library_a_layer_at_a_time_is_read(
    make_library: MakeLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores are the same bit by bit, and no layer but the last read is ever in memory."""
    kept, spare = make_library(), make_library()
    spare.loaded.clear()
    wanted = score(kept, TOKENS, ScoreConfig(batch=2), folder=tmp_path / "kept")
    assert len(kept.loaded) == 3
    most = list[int]()
    read = spare._read

    def note(layer: int) -> dict[str, Tensor]:
        most.append(len(spare.loaded) + 1)
        return read(layer)

    monkeypatch.setattr(module, "room", lambda _: 0)
    monkeypatch.setattr(spare, "_read", note)
    assert score(spare, TOKENS, ScoreConfig(batch=2), folder=tmp_path / "spare") == wanted
    assert most == [1] * 9 and not spare.loaded  # three layers for each of three batches


def test_singles_and_pairs_are_those_of_all_pairs(make_library: MakeLibrary, tmp_path: Path) -> None:
    library = make_library()
    truth = score(library, TOKENS, ScoreConfig(joint="all"), folder=tmp_path / "all")
    for joint, count in (("none", 7), ("pairs", 7 + 3)):
        found = score(library, TOKENS, ScoreConfig(joint=joint, pairs=3), folder=tmp_path / joint)
        for layer in range(3):
            measured = found.layers[layer]
            assert len(measured) == count
            assert measured == pytest.approx({name: truth.layers[layer][name] for name in measured}, abs=1e-6)
    none = score(library, TOKENS, ScoreConfig(joint="pairs", pairs=0), folder=tmp_path / "zero")
    assert [len(table) for table in none.layers] == [7] * 3 and none.interaction == (0.0,) * 3


def test_the_interaction_is_the_least_squares_one(make_library: MakeLibrary, tmp_path: Path) -> None:
    library = make_library()
    config = ScoreConfig(joint="pairs", pairs=4)
    found = score(library, TOKENS, config, folder=tmp_path)
    for layer, own in enumerate(library.space.shape.arch.blocks):
        singles = {b.name for b in library.space.blocks(layer) if (b.attention == own.attention) != (b.ffn == own.ffn)}
        pairs = [b for b in library.space.blocks(layer) if b.name in found.layers[layer] and b.name not in singles]
        assert len(pairs) == 4

        def missed(g: float, layer: int = layer, own: Block = own, pairs: list[Block] = pairs) -> float:
            total = 0.0
            for block in pairs:
                s_a, s_f = found.halves(layer, block)
                total += (found.layers[layer][block.name] - s_a - s_f - g * math.sqrt(s_a * s_f)) ** 2
            return total

        g = found.interaction[layer]
        assert g != 0 and missed(g) < missed(0)
        assert missed(g) < min(missed(g + 0.01), missed(g - 0.01))
        other = next(b for b in library.space.blocks(layer) if b.name not in found.layers[layer] and b != own)
        s_a, s_f = found.halves(layer, other)
        assert found.block(layer, other) == pytest.approx(s_a + s_f + g * math.sqrt(s_a * s_f))


def test_scores_survive_json() -> None:
    around = tiny.parent(layers=2)
    scores = Scores(layers=({"x": 0.1}, {"x": 2.0}), interaction=(0.3, -0.1), around=arch_of(around.config), base=0.2)
    assert Scores.from_json(json.loads(json.dumps(scores.to_json()))) == scores


def test_the_sum_of_scores_adds_layers(make_library: MakeLibrary, tmp_path: Path) -> None:
    library = make_library()
    found = score(library, TOKENS, ScoreConfig(joint="all"), folder=tmp_path)
    own, options = library.space.shape.arch, library.space.blocks(0)
    arch = DecoderArch(blocks=(options[3], own.blocks[1], options[7]))
    total = found.layers[0][options[3].name] + found.layers[2][options[7].name]
    assert found.total(arch) == pytest.approx(total) and found.total(own) == 0


def healed(library: Library, seed: int) -> Library:
    """The library after a round: around a child of it, all of whose weights have moved."""
    rng = random.Random(seed)
    child = free(library.compose(DecoderArch(blocks=tuple(rng.choice(library.space.blocks(i)) for i in range(3)))))
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in child.parameters():
            weight.add_(0.1 * weight.std(correction=0) * torch.randn_like(weight))
    return replace(library, healed=child)


@pytest.mark.parametrize(
    ("metric", "family"), [("kl", "qwen3"), ("loss", "llama"), ("hidden", "llama"), ("kl", tiny.HYBRID)]
)
def test_around_a_healed_child_too(metric: str, family: str, make_library: MakeLibrary, tmp_path: Path) -> None:
    library = healed(make_library(family), seed=1)
    found = score(library, TOKENS, ScoreConfig(metric=metric, joint="all", batch=4), folder=tmp_path)
    parent, start = tiny.original(family, 3), library.healed
    assert found.around == arch_of(start.config) != library.space.shape.arch  # type: ignore[union-attr]
    assert found.base == pytest.approx(naive(parent, start, metric), abs=1e-5, rel=1e-5) and abs(found.base) > 1e-3
    for layer, own in enumerate(found.around.blocks):
        options = library.space.blocks(layer)
        assert set(found.layers[layer]) == {block.name for block in options if block != own}
        for block in options:
            blocks = found.around.blocks
            whole = library.compose(DecoderArch(blocks=(*blocks[:layer], block, *blocks[layer + 1 :])))
            for place, there in enumerate(whole.model.layers):
                if place != layer:  # the rest is the healed child
                    kept = start.model.layers[place].state_dict()  # type: ignore[union-attr]
                    assert all(t.equal(kept[name]) for name, t in there.state_dict().items())
            truth = naive(parent, whole, metric) - found.base
            assert found.block(layer, block) == pytest.approx(truth, abs=1e-5, rel=1e-4), (layer, block.name)
    again = score_task(library, lambda model: naive(parent, model, metric))
    for a, b in zip(again.layers, found.layers, strict=True):
        assert all(a[name] == pytest.approx(b[name], abs=1e-5, rel=1e-4) for name in a)


def test_finished_batches_are_read_and_pieces_change_nothing(
    make_library: MakeLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, config = make_library(), ScoreConfig(batch=2)
    whole = score(library, TOKENS, config, folder=tmp_path)
    batches, done = module._score_batch, list[Tensor]()

    def watched(library: Library, halves: Any, plans: Any, ids: Tensor, *rest: Any) -> Any:
        done.append(ids)
        return batches(library, halves, plans, ids, *rest)

    monkeypatch.setattr(module, "_score_batch", watched)
    (tmp_path / "batch_0001.json").unlink()
    assert score(library, TOKENS, config, folder=tmp_path) == whole
    assert len(done) == 1 and done[0].equal(TOKENS[2:4])
    monkeypatch.setattr(module, "CPU_LOGITS", 1)
    one_by_one = score(library, TOKENS, config, folder=tmp_path / "other")
    for a, b in zip(one_by_one.layers, whole.layers, strict=True):
        assert a == pytest.approx(b, abs=1e-6)


def test_a_task_of_the_users_own_runs_whole_children(make_library: MakeLibrary, tmp_path: Path) -> None:
    library = make_library(layers=2)
    found = score_task(library, lambda model: evaluate(model, TOKENS).loss)
    truth = score(library, TOKENS, ScoreConfig(metric="loss", joint="none"), folder=tmp_path)
    for a, b in zip(found.layers, truth.layers, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


@pytest.mark.parametrize("wrong", [{"joint": "some"}, {"metric": "bleu"}, {"pairs": -1}, {"batch": 0}])
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadData, match=next(iter(wrong))):
        ScoreConfig(**wrong)
