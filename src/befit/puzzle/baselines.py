"""Simpler ways to meet the same budget, from the same library: what a search must beat.

Uniform: layers that are alike in the parent stay alike. Depth: whole layers dropped in the order of block influence
(ShortGPT, arXiv 2403.03853). Greedy: layer by layer, each takes the best option that an equal share of what is left of each
bound pays for (after Puzzle's own ablation). Random: a legal architecture within the budget.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

from befit.arch.decoder import Attention, Block, DecoderArch, NoOp
from befit.arch.decoder_space import DecoderSpace
from befit.budget import Bound
from befit.errors import Infeasible
from befit.puzzle.prices import Prices
from befit.puzzle.score import Scores
from befit.puzzle.solve import Option, Table, solve

Affordable = Callable[[DecoderArch], bool]


def uniform(
    space: DecoderSpace, true_kl: Callable[[DecoderArch], float], scores: Scores, affordable: Affordable
) -> DecoderArch | None:
    """The best of all uniform children that fit, by true KL among the four of best predicted score."""
    own = space.shape.arch.blocks
    last = {block: layer for layer, block in enumerate(own)}  # where each kind of layer was seen last
    choices = [dict(zip(last, choice, strict=True)) for choice in product(*(space.blocks(i) for i in last.values()))]
    found = [DecoderArch(blocks=tuple(choice[block] for block in own)) for choice in choices]
    fitting = [arch for arch in found if space.contains(arch) and affordable(arch)]
    fitting.sort(key=scores.total)
    return min(fitting[:4], key=true_kl, default=None)


def depth(space: DecoderSpace, influence: Sequence[float], affordable: Affordable) -> DecoderArch | None:
    """Drop whole layers, least influence first, until the budget is met; layers the target needs are passed over."""
    blocks, gone = list(space.shape.arch.blocks), Block(attention=NoOp(), ffn=NoOp())
    for layer in sorted(range(len(blocks)), key=lambda i: influence[i]):
        if affordable(DecoderArch(blocks=tuple(blocks))):
            break
        left = sum(isinstance(b.attention, Attention) for b in blocks)
        if gone in space.blocks(layer) and (left > 1 or not isinstance(blocks[layer].attention, Attention)):
            blocks[layer] = gone
    arch = DecoderArch(blocks=tuple(blocks))
    return arch if affordable(arch) and space.contains(arch) else None


def greedy(space: DecoderSpace, prices: Prices, scores: Scores, bounds: Sequence[Bound]) -> DecoderArch | None:
    """Layer by layer: the best-scored option within an equal share of each bound, and what earlier layers left of theirs."""
    fixed, count = prices.fixed(), space.shape.layers
    left: dict[str, float] = {}
    for bound in bounds:
        if bound.op == "<=":  # Latency may be bounded twice: by itself and by throughput.
            free = bound.value - fixed[bound.cost]
            left[bound.cost] = min(free, left.get(bound.cost, free))
    blocks: list[Block] = []
    parent = space.shape.arch.blocks
    for layer in range(count):
        share = {name: value / (count - layer) for name, value in left.items()}
        last = not any(isinstance(b.attention, Attention) for b in (*blocks, *parent[layer + 1 :]))
        fitting = [
            block
            for block in space.blocks(layer)
            if all(prices.block(block)[name] <= limit for name, limit in share.items())
            and (isinstance(block.attention, Attention) or not last)
        ]
        if not fitting:
            return None
        blocks.append(min(fitting, key=lambda block, i=layer: scores.block(i, block)))
        left = {name: value - prices.block(blocks[-1])[name] for name, value in left.items()}
    arch = DecoderArch(blocks=tuple(blocks))
    return arch if space.contains(arch) else None


def drawn(
    space: DecoderSpace, table: Table, bounds: Sequence[Bound], affordable: Affordable, *, seed: int
) -> DecoderArch | None:
    """A random architecture within the budget: drawn until one fits, else the solver's answer to random scores."""
    rng = random.Random(seed)
    for _ in range(2000):
        arch = space.sample(rng)
        if affordable(arch):
            return arch
    blurred = [tuple(_with_score(option, rng.random()) for option in layer) for layer in table.layers]
    try:
        choice = solve(replace(table, layers=tuple(blurred)), bounds)[0].choice
    except Infeasible:
        return None
    arch = DecoderArch(blocks=tuple(space.blocks(i)[k] for i, k in enumerate(choice)))
    return arch if space.contains(arch) else None


def _with_score(option: Option, score: float) -> Option:
    return replace(option, score=score)
