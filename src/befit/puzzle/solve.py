"""Choose one option for every layer: least total score within any number of bounds, proven.

Source: the mixed-integer programme of Puzzle (arXiv 2411.19146, section 4.3), a grouped knapsack: scores and costs add up
over layers. Diverse solutions as there: a later one agrees with every earlier one in at most a given share of the layers.
How it is solved is in `befit.puzzle.knapsack`; whatever comes from there is added up again here, in plain Python, before
anybody sees it.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from befit.budget import Bound, Budget, human, word_of
from befit.errors import BadBudget, BadTable, BefitError, Infeasible
from befit.puzzle.knapsack import Ints, Knapsack, best, nearest


@dataclass(frozen=True, kw_only=True)
class Option:
    """One alternative for one layer."""

    name: str
    """For people; need not be unique."""
    score: float
    """Quality lost, any finite number; lower is better."""
    costs: Mapping[str, float]
    """Finite; the same names in every option of a table."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """The options of every layer. `to_json` and `from_json` are inverse and strict."""

    layers: tuple[tuple[Option, ...], ...]
    """At least one layer, each with at least one option."""
    fixed: Mapping[str, float] = field(default_factory=dict[str, float])
    """What every choice pays beside its options; a cost not named here is 0."""

    def __post_init__(self) -> None:
        if not self.layers:
            raise BadTable("layers: a table needs at least one layer, got none")
        for i, options in enumerate(self.layers):
            if not options:
                raise BadTable(f"layers[{i}].options: a layer needs at least one option, got none")
            for j, option in enumerate(options):
                _check_option(option, f"layers[{i}].options[{j}]", self.costs)
        for name, value in self.fixed.items():
            if name not in self.costs:
                raise BadTable(f"fixed.{name}: no option has this cost; the options' costs are {_listed(self.costs)}")
            _check_finite(value, f"fixed.{name}")

    @property
    def costs(self) -> tuple[str, ...]:
        """The names of the costs."""
        return tuple(self.layers[0][0].costs) if self.layers and self.layers[0] else ()

    def to_json(self) -> dict[str, Any]:
        """`{"layers": [{"options": [{"name": str, "score": number, "costs": {name: number}}]}], "fixed": {name: number}}`."""
        layers = [
            {"options": [{"name": o.name, "score": o.score, "costs": dict(o.costs)} for o in options]}
            for options in self.layers
        ]
        return {"layers": layers, "fixed": dict(self.fixed)}

    @staticmethod
    def from_json(data: Any) -> "Table":
        """Read what `to_json` wrote; `fixed` may be absent. Raises `BadTable` naming the place that is wrong."""
        top = _object(data, "table", ("layers",), ("fixed",))
        layers = list[tuple[Option, ...]]()
        for i, entry in enumerate(_array(top["layers"], "layers")):
            options = _array(_object(entry, f"layers[{i}]", ("options",))["options"], f"layers[{i}].options")
            layers.append(tuple(_option(option, f"layers[{i}].options[{j}]") for j, option in enumerate(options)))
        return Table(layers=tuple(layers), fixed=_numbers(top.get("fixed", {}), "fixed"))


@dataclass(frozen=True, kw_only=True)
class Solution:
    """One option for each layer, and what they come to."""

    score: float
    """Sum of the options' scores."""
    choice: tuple[int, ...]
    """Index of the option of each layer."""
    costs: Mapping[str, float]
    """All costs, `fixed` included."""
    gap: float = 0.0
    """At most this much lower a score may exist; 0 when the solution is proven best."""

    def to_json(self) -> dict[str, Any]:
        """`score`, `choice`, `costs`; and `gap` if the solution is not proven best."""
        plain = {"score": self.score, "choice": list(self.choice), "costs": dict(self.costs)}
        return plain | ({"gap": self.gap} if self.gap else {})


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """A choice from which an answer must differ: at most `same` layers may agree."""

    choice: tuple[int, ...]
    same: int


def solve(
    table: Table,
    bounds: Sequence[Bound],
    *,
    solutions: int = 1,
    difference: float = 0.2,
    forbidden: Sequence[Sequence[int]] = (),
    seconds: float = 60.0,
) -> tuple[Solution, ...]:
    """The best choice within absolute `bounds`; with `solutions` > 1 also further ones, best first, as many as exist.

    Each further one differs from every earlier one in at least the share `difference` of the layers (and in at least
    one layer). `forbidden` choices are not returned. `seconds` limits each solution; if no proof is found in time, the best
    choice known is returned with its `gap`.

    Raises `Infeasible` if nothing fits, `BadBudget` for relative bounds, unknown costs or impossible arguments.
    """
    _check_request(table, bounds, solutions, difference)
    apart = max(1, math.ceil(difference * len(table.layers) - 1e-9))
    cuts = [_Cut(choice=_checked_choice(table, choice), same=len(table.layers) - 1) for choice in forbidden]
    found = list[Solution]()
    while len(found) < solutions:
        solution = _best(table, bounds, cuts, seconds, required=not found)
        if solution is None:
            break
        found.append(solution)
        cuts.append(_Cut(choice=solution.choice, same=len(table.layers) - apart))
    if not found:
        raise _infeasible(table, bounds, cuts, seconds)
    return tuple(found)


def best_batch(
    tables: Mapping[int, Table], bounds: Callable[[int], Sequence[Bound]], *, seconds: float = 60.0
) -> tuple[int, Solution]:
    """Solve for every batch size (the key) with its own table and bounds; the batch and solution of least score.

    Of equal scores the smaller batch wins. Raises `Infeasible` only if every batch is, and then that of the batch
    that comes nearest.
    """
    if not tables:
        raise BadTable("best_batch: expected a table for at least one batch size, got none")
    found, failed = list[tuple[float, int, Solution]](), list[tuple[float, int, Infeasible]]()
    for batch in sorted(tables):
        try:
            solution = solve(tables[batch], bounds(batch), seconds=seconds)[0]
            found.append((solution.score, batch, solution))
        except Infeasible as error:
            failed.append((_worst(bounds(batch), error.nearest), batch, error))
    if not found:
        _, batch, error = min(failed, key=lambda entry: entry[:2])
        tried = ", ".join(str(b) for b in sorted(tables))
        message = f"batch {batch} comes nearest of {tried}: {error}"
        raise Infeasible(message, binding=error.binding, nearest=error.nearest)
    _, batch, solution = min(found, key=lambda entry: entry[:2])
    return batch, solution


def solve_file(path: str | Path, budget_text: str, solutions: int = 1) -> dict[str, Any]:
    """Solve a table in a JSON file under a budget on its own costs: what `befit solve` prints.

    Returns `score`, `choice`, `costs` and `names` of the best choice; if more are asked for also `solutions`, a list of
    the same, best first. Raises `BadTable`, `BadBudget` or `Infeasible`.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise BadTable(f"{path}: cannot be read ({error.strerror}); expected a JSON file with a table") from error
    except ValueError as error:
        raise BadTable(f"{path}: is not JSON ({error}); expected a table: {{'layers': […], 'fixed': {{…}}}}") from error
    table = Table.from_json(data)
    found = solve(table, Budget.parse(budget_text, costs=table.costs).bounds, solutions=solutions)
    plain = [s.to_json() | {"names": [table.layers[i][j].name for i, j in enumerate(s.choice)]} for s in found]
    return plain[0] | ({"solutions": plain} if solutions > 1 else {})


def _best(
    table: Table, bounds: Sequence[Bound], cuts: Sequence[_Cut], seconds: float, *, required: bool
) -> Solution | None:
    """The best choice, added up again and found within bounds; None if there is none."""
    starts = _starts(table)

    def exact(items: Ints) -> float | None:
        choice = tuple(int(item - start) for item, start in zip(items, starts, strict=True))
        solution = _added_up(table, choice)
        return solution.score if _keeps(solution, bounds, cuts) else None

    try:
        found = best(_knapsack(table, bounds, cuts), exact, seconds)
    except TimeoutError as error:
        if not required:
            return None
        raise BefitError(
            f"no choice within the bounds was found in {seconds:g} s, nor a proof that there is none; "
            "allow more seconds or widen the narrowest bound"
        ) from error
    if found is None:
        return None
    solution = _added_up(
        table, tuple(int(item - start) for item, start in zip(found.items, starts, strict=True)), found.gap
    )
    assert _keeps(solution, bounds, cuts), "the knapsack returned a choice that breaks a bound"
    return solution


def _added_up(table: Table, choice: Sequence[int], gap: float = 0.0) -> Solution:
    """Score and costs of a choice, each rounded once."""
    options = [table.layers[i][j] for i, j in enumerate(choice)]
    costs = {c: math.fsum([table.fixed.get(c, 0.0), *(o.costs[c] for o in options)]) for c in table.costs}
    return Solution(score=math.fsum(o.score for o in options), choice=tuple(choice), costs=costs, gap=gap)


def _keeps(solution: Solution, bounds: Sequence[Bound], cuts: Sequence[_Cut]) -> bool:
    agree = [sum(a == b for a, b in zip(solution.choice, cut.choice, strict=True)) for cut in cuts]
    return all(bound.met(solution.costs[bound.cost]) for bound in bounds) and all(
        same <= cut.same for same, cut in zip(agree, cuts, strict=True)
    )


def _knapsack(table: Table, bounds: Sequence[Bound], cuts: Sequence[_Cut]) -> Knapsack:
    """Bounds, then cuts, as rows `use <= limit`; a lower bound is an upper bound on the negative."""
    options = [option for layer in table.layers for option in layer]
    layer = np.repeat(np.arange(len(table.layers)), [len(o) for o in table.layers])
    use = np.zeros((len(bounds) + len(cuts), len(options)))
    limit = np.zeros(len(use))
    for row, bound in enumerate(bounds):
        sign = 1.0 if bound.op == "<=" else -1.0
        use[row] = [sign * option.costs[bound.cost] for option in options]
        limit[row] = sign * (bound.value - table.fixed.get(bound.cost, 0.0))
    for row, cut in enumerate(cuts, start=len(bounds)):
        use[row, [start + j for start, j in zip(_starts(table), cut.choice, strict=True)]] = 1.0
        limit[row] = cut.same
    return Knapsack(layer=layer, score=np.array([float(o.score) for o in options]), use=use, limit=limit)


def _starts(table: Table) -> list[int]:
    return [0, *np.cumsum([len(options) for options in table.layers]).tolist()][:-1]


def _infeasible(table: Table, bounds: Sequence[Bound], cuts: Sequence[_Cut], seconds: float) -> Infeasible:
    """Say which bound cannot be met, how far each can be, and what comes nearest."""
    unit = np.array([abs(bound.value) or 1.0 for bound in bounds] + [0.0] * len(cuts))
    items = nearest(_knapsack(table, bounds, cuts), unit, min(seconds, 10.0))
    if items is None and cuts:
        return Infeasible("every choice is forbidden; forbid fewer", binding="forbidden", nearest={})
    if items is None:  # only the clock can be the reason: any choice is a point
        items = np.array(_starts(table))
    choice = tuple(int(item - start) for item, start in zip(items, _starts(table), strict=True))
    costs = _added_up(table, choice).costs
    reach = {bound: _reachable(table, bound) for bound in bounds}
    alone = [bound for bound in bounds if not bound.met(reach[bound])]
    binding = (
        max(alone, key=lambda b: b.excess(reach[b])) if alone else max(bounds, key=lambda b: b.excess(costs[b.cost]))
    )
    point = {bound.cost: costs[bound.cost] for bound in bounds}
    lines = [_reach_sentence(bound, reach[bound]) for bound in bounds]
    what = (
        f"{word_of(binding.cost)} cannot be met by any choice"
        if alone
        else f"each bound can be met alone, but not all together; {word_of(binding.cost)} falls short most"
    )
    near = ", ".join(f"{word_of(cost)} {human(cost, value)}" for cost, value in point.items())
    advice = f"Widen {word_of(binding.cost)}" + ("" if alone else " or one of the others") + ", or offer other options."
    return Infeasible(
        f"no choice meets the budget: {what}. {' '.join(lines)} The nearest choice has {near}. {advice}",
        binding=binding.cost,
        nearest=point,
    )


def _reachable(table: Table, bound: Bound) -> float:
    """The least (for a lower bound: the largest) value of a cost over all choices."""
    pick = min if bound.op == "<=" else max
    values = [pick(option.costs[bound.cost] for option in options) for options in table.layers]
    return math.fsum([table.fixed.get(bound.cost, 0.0), *values])


def _reach_sentence(bound: Bound, reach: float) -> str:
    end = "at least" if bound.op == "<=" else "at most"
    limit = "at most" if bound.op == "<=" else "at least"
    return f"{word_of(bound.cost)} is {end} {human(bound.cost, reach)}, asked for {limit} {human(bound.cost, bound.value)}."


def _worst(bounds: Sequence[Bound], costs: Mapping[str, float]) -> float:
    return max((bound.excess(costs[bound.cost]) for bound in bounds if bound.cost in costs), default=math.inf)


def _check_request(table: Table, bounds: Sequence[Bound], solutions: int, difference: float) -> None:
    if solutions < 1:
        raise BadBudget(f"solutions must be at least 1, got {solutions}")
    if not 0 <= difference <= 1:
        raise BadBudget(f"difference must be a share of the layers between 0 and 1, got {difference}")
    for bound in bounds:
        if bound.relative:
            raise BadBudget(f"{bound} is relative to the parent; call Budget.resolve(parent costs) first")
        if bound.cost not in table.costs:
            raise BadBudget(f"{bound}: the table has no cost {bound.cost!r}; it has {_listed(table.costs)}")


def _checked_choice(table: Table, choice: Sequence[int]) -> tuple[int, ...]:
    sizes = [len(options) for options in table.layers]
    if len(choice) != len(sizes) or not all(0 <= j < size for j, size in zip(choice, sizes, strict=True)):
        raise BadBudget(f"forbidden: expected one option index for each of {len(sizes)} layers, got {tuple(choice)}")
    return tuple(choice)


def _check_option(option: Option, place: str, names: Sequence[str]) -> None:
    _check_finite(option.score, f"{place}.score")
    if set(option.costs) != set(names):
        first = "layers[0].options[0]"
        raise BadTable(f"{place}.costs: got {_listed(tuple(option.costs))}; {first} has {_listed(names)}, so must all")
    for name, value in option.costs.items():
        _check_finite(value, f"{place}.costs.{name}")


def _check_finite(value: float, place: str) -> None:
    if not math.isfinite(value):
        raise BadTable(f"{place}: expected a finite number, got {value}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _option(data: Any, place: str) -> Option:
    entry = _object(data, place, ("name", "score", "costs"))
    if not isinstance(entry["name"], str):
        raise BadTable(f"{place}.name: expected a text, got {entry['name']!r}")
    score, costs = _number(entry["score"], f"{place}.score"), _numbers(entry["costs"], f"{place}.costs")
    return Option(name=entry["name"], score=score, costs=costs)


def _object(data: Any, place: str, keys: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    given = dict(_items(data, place))
    unknown, missing = [k for k in given if k not in keys + optional], [k for k in keys if k not in given]
    if unknown or missing:
        what = [f"unknown {', '.join(unknown)}"] * bool(unknown) + [f"missing {', '.join(missing)}"] * bool(missing)
        raise BadTable(f"{place}: {'; '.join(what)}; the keys are {', '.join(keys + optional)}")
    return given


def _numbers(data: Any, place: str) -> dict[str, float]:
    return {name: _number(value, f"{place}.{name}") for name, value in _items(data, place)}


def _items(data: Any, place: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(data, dict):
        raise BadTable(f"{place}: expected an object, got {_shortly(data)}")
    yield from cast("dict[str, Any]", data).items()


def _array(data: Any, place: str) -> list[Any]:
    if not isinstance(data, list):
        raise BadTable(f"{place}: expected a list, got {_shortly(data)}")
    return cast("list[Any]", data)


def _number(data: Any, place: str) -> float:
    if isinstance(data, bool) or not isinstance(data, int | float):
        raise BadTable(f"{place}: expected a number, got {_shortly(data)}")
    try:
        return float(data)
    except OverflowError as error:
        raise BadTable(f"{place}: expected a finite number, got one beyond 1e308") from error


def _shortly(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 60 else text[:57] + "…"
