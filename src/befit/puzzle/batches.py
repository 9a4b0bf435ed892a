"""At which batch sizes a throughput is looked for, and which of them the parent is held against.

A smaller cache leaves room for more requests at once, and more requests at once are more tokens a second: Puzzle solves its
program for every batch size and keeps the best (arXiv 2411.19146, section on the search). Each batch size needs a table of
times of its own, so only some are tried: here multiples by two, between the parent's batch and the one asked for.

A memory bound that is no share of the parent's, such as `memory=80GiB`, holds for the parent as well: its throughput is that
at the largest batch whose weights and cache it leaves room for.
"""

from collections.abc import Sequence
from dataclasses import replace

from befit.arch.decoder import DecoderShape
from befit.arch.decoder_space import DecoderSpace
from befit.budget import Budget
from befit.cost.count import count
from befit.cost.workload import Workload
from befit.errors import Infeasible
from befit.puzzle.prices import check_counted

HELD = ("memory_bytes", "cache_bytes")
"""Costs that limit how many requests run together."""


def fitted(workload: Workload, budget: Budget, shape: DecoderShape) -> Workload:
    """The workload that relative bounds mean: with the largest batch, up to the one asked for, that the parent has room for.

    It differs from `workload` only where throughput is bounded and memory or cache has an absolute bound that the parent
    breaks. If the parent breaks it at any batch, the batch stays as asked: there is nothing else to compare with.
    """
    limits = {b.cost: b.value for b in budget.bounds if b.cost in HELD and not b.relative}
    if not (_sweeps(budget) and limits):
        return workload
    one = count(shape, shape.arch, replace(workload, batch=1))
    rooms = {"memory_bytes": one.weight_bytes, "cache_bytes": 0}
    batches = [(limit - rooms[cost]) / one.cache_bytes for cost, limit in limits.items() if one.cache_bytes]
    largest = int(min(batches, default=workload.batch))
    return replace(workload, batch=largest) if 1 <= largest < workload.batch else workload


def crowded(workload: Workload, budget: Budget, shape: DecoderShape) -> bool:
    """Whether throughput is bounded and the parent itself breaks an absolute bound on memory or cache at this workload."""
    cost = count(shape, shape.arch, workload)
    taken = {"memory_bytes": cost.memory_bytes, "cache_bytes": cost.cache_bytes}
    return _sweeps(budget) and any(
        not bound.relative and taken.get(bound.cost, 0) > bound.value for bound in budget.bounds
    )


def batches_of(asked: Workload, base: Workload, budget: Budget, given: Sequence[int] = ()) -> tuple[int, ...]:
    """Batch sizes to price, in ascending order: the parent's (`base`, see `fitted`), and more when throughput is bounded.

    `given` are those that the user names. None takes 1, 2 and 4 times the workload's; where memory holds the parent below
    what was `asked`, doubles of its batch up to that.
    """
    if not _sweeps(budget):
        return (base.batch,)
    if given:
        return tuple(sorted({base.batch, *given}))
    if base.batch == asked.batch:
        return base.batch, 2 * base.batch, 4 * base.batch
    found, batch = [asked.batch], base.batch
    while batch < asked.batch:
        found.append(batch)
        batch *= 2
    return tuple(sorted(found))


def with_room(space: DecoderSpace, budget: Budget, base: Workload, batches: Sequence[int]) -> tuple[int, ...]:
    """Those of `batches` at which some child keeps the bounds on counted costs, and the parent's own.

    Raises `Infeasible` if there is none.
    """
    found = set[int]()
    for batch in sorted(batches):
        try:
            check_counted(space, budget, base, batch)
        except Infeasible:
            # No cost falls with the batch, so the larger ones have no room either.
            if not found:
                raise
            break
        found.add(batch)
    return tuple(sorted(found | {base.batch}))


def _sweeps(budget: Budget) -> bool:
    return any(bound.cost == "tokens_per_s" for bound in budget.bounds)
