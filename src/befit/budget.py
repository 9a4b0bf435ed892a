"""A budget: bounds on costs, absolute or relative to the parent, as the user writes them.

    latency=60%, memory=8GiB, throughput>=2x

Every cost but throughput is bounded from above, throughput from below; `=` means that natural direction. `%` and `x`
are relative to the parent and become absolute with `Budget.resolve`. Decimal units are SI (kB = 1000), binary units
IEC 80000-13 (KiB = 1024). Solver tables have costs of their own: `Budget.parse(text, costs=names)`.
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from befit.errors import BadBudget

Op = Literal["<=", ">="]

_COSTS = {
    "params": ("params", "count"),
    "memory_bytes": ("memory", "bytes"),
    "weight_bytes": ("weights", "bytes"),
    "cache_bytes": ("cache", "bytes"),
    "flops": ("flops", "flops"),
    "macs": ("macs", "count"),
    "latency_ms": ("latency", "ms"),
    "prefill_ms": ("prefill_ms", "ms"),
    "decode_ms": ("decode_ms", "ms"),
    "tokens_per_s": ("throughput", "rate"),
}
"""Cost -> (the word users write, the kind of unit); memory = weights + cache, latency = prefill + generate x decode."""

_WORDS = {word: cost for cost, (word, _) in _COSTS.items()} | {cost: cost for cost in _COSTS} | {"ttft": "prefill_ms"}
_LOWER = frozenset({"tokens_per_s"})

_BINARY = {"TiB": 2.0**40, "GiB": 2.0**30, "MiB": 2.0**20, "KiB": 2.0**10}
_UNITS: dict[str, dict[str, float]] = {
    "count": {"B": 1e9, "G": 1e9, "M": 1e6, "K": 1e3, "": 1.0},
    "flops": {"T": 1e12, "G": 1e9, "B": 1e9, "M": 1e6, "K": 1e3, "": 1.0},
    "bytes": _BINARY | {"TB": 1e12, "GB": 1e9, "MB": 1e6, "KB": 1e3, "B": 1.0},
    "ms": {"s": 1e3, "ms": 1.0, "us": 1e-3, "": 1.0},
    "rate": {"": 1.0},
    "plain": {"": 1.0},
}

_BOUND = re.compile(r"\s*(?P<word>.*?)\s*(?P<op><=|>=|=)\s*(?P<value>.*?)\s*", re.DOTALL)
_VALUE = re.compile(r"(?P<number>[+-]?(?:[\d_.]+(?:e[+-]?\d+)?|nan|inf(?:inity)?))\s*(?P<unit>[a-zµ%]*)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Bound:
    """One bound: `cost op value`."""

    cost: str
    """Name of the cost: one of befit's (`memory_bytes`, `latency_ms`, …) or one of a solver table."""
    op: Op
    """`<=` or `>=`."""
    value: float
    """In the cost's own unit; a factor of the parent's cost, above 0, if `relative`."""
    relative: bool = False
    """Whether `value` multiplies the parent's cost."""

    def __post_init__(self) -> None:
        if self.op not in ("<=", ">="):
            raise BadBudget(f"bound on {self.cost}: the comparison must be '<=' or '>=', got {self.op!r}")
        if not math.isfinite(self.value) or (self.relative and self.value <= 0):
            wanted = "a number above 0" if self.relative else "a finite number"
            raise BadBudget(f"bound on {self.cost}: the value must be {wanted}, got {self.value!r}")

    def met(self, value: float) -> bool:
        """Whether `value` keeps an absolute bound; NaN never does."""
        return value <= self.value if self.op == "<=" else value >= self.value

    def excess(self, value: float) -> float:
        """By what fraction of the bound `value` breaks it; negative: what is still free. A bound of 0 counts as 1."""
        over = value - self.value if self.op == "<=" else self.value - value
        return over / (abs(self.value) or 1.0)

    def __str__(self) -> str:
        word, kind = _COSTS.get(self.cost, (self.cost, "plain"))
        return f"{word}{self.op}{_relative_text(self.value) if self.relative else _exact_text(kind, self.value)}"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Bounds that must all hold. `str` is canonical: `Budget.parse(str(b)) == b` for every parsed budget."""

    bounds: tuple[Bound, ...]
    """At least one; at most one for each cost and direction."""

    def __post_init__(self) -> None:
        if not self.bounds:
            raise BadBudget("a budget needs at least one bound, for example memory=70%")
        seen = set[tuple[str, str]]()
        for bound in self.bounds:
            if (bound.cost, bound.op) in seen:
                raise BadBudget(f"budget: {bound.cost} is bounded twice with {bound.op}; keep the stricter bound")
            seen.add((bound.cost, bound.op))

    @staticmethod
    def parse(text: str, costs: Iterable[str] | None = None) -> "Budget":
        """Read `latency=60%, memory<=8GiB`, or bounds on the named `costs` of a solver table.

        Words ignore case. For a table the words are its cost names as they stand, the numbers plain, and both
        directions are allowed (`=` means `<=`). Raises `BadBudget` for anything that cannot be read.
        """
        if not text.strip():
            raise BadBudget("budget: got an empty text; expected bounds such as latency=60%, memory=8GiB")
        names = None if costs is None else tuple(costs)
        return Budget(bounds=tuple(_parse_bound(part, names) for part in text.split(",")))

    def resolve(self, parent: Mapping[str, float]) -> "Budget":
        """Make relative bounds absolute with the parent's costs. Raises `BadBudget` if one is missing or 0."""
        return Budget(bounds=tuple(_resolve(bound, parent) for bound in self.bounds))

    def met(self, costs: Mapping[str, float]) -> bool:
        """Whether `costs` keep every bound. Raises `BadBudget` if a cost is missing or a bound relative."""
        return all(bound.met(_cost(bound, costs)) for bound in self.bounds)

    def headroom(self, costs: Mapping[str, float]) -> dict[str, float]:
        """For each bounded cost the fraction of its bound still free, negative if broken; the smaller of two sides."""
        room = dict[str, float]()
        for bound in self.bounds:
            free = -bound.excess(_cost(bound, costs)) + 0.0
            room[bound.cost] = min(free, room.get(bound.cost, free))
        return room

    def explain(self, costs: Mapping[str, float]) -> list[str]:
        """One sentence for each bound, with units: `memory 12.3 MiB of 14.0 MiB allowed (12 % free)`."""
        return [_sentence(bound, _cost(bound, costs)) for bound in self.bounds]

    def tighten(self, factors: Mapping[str, float]) -> "Budget":
        """Multiply upper bounds by the factor given for their cost. Raises `BadBudget` if such a bound is relative."""
        return Budget(bounds=tuple(_tighten(bound, factors.get(bound.cost, 1.0)) for bound in self.bounds))

    def to_json(self) -> dict[str, Any]:
        """`{"bounds": [{"cost": "memory_bytes", "op": "<=", "value": 0.7, "relative": true}]}`"""
        keys = ("cost", "op", "value", "relative")
        return {"bounds": [dict(zip(keys, (b.cost, b.op, b.value, b.relative), strict=True)) for b in self.bounds]}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Budget":
        """Read what `to_json` wrote. Raises `BadBudget` for an unknown or missing key or a wrong type."""
        bounds = _only_keys(data, ("bounds",), "budget")["bounds"]
        if not isinstance(bounds, list):
            raise BadBudget(f"budget: 'bounds' must be a list, got {type(bounds).__name__}")
        return Budget(bounds=tuple(_bound_from_json(entry, i) for i, entry in enumerate(cast("list[Any]", bounds))))

    def __str__(self) -> str:
        return ", ".join(str(bound) for bound in self.bounds)


def human(cost: str, value: float) -> str:
    """A cost for people: `human("memory_bytes", 12.9e6)` is `12.3 MiB`. Other names tell their unit by `_bytes`, `_ms`."""
    kind = _COSTS[cost][1] if cost in _COSTS else _kind_of(cost)
    if not math.isfinite(value):
        return str(value)
    if kind == "bytes":
        return _scaled(value, _BINARY | {"B": 1.0})
    if kind == "ms":
        unit = "s" if abs(value) >= 1e4 else "us" if 0 < abs(value) < 0.1 else "ms"
        return f"{_digits(value / _UNITS['ms'][unit])} {unit}"
    if kind == "flops":
        return _scaled(value, {"PFLOP": 1e15, "TFLOP": 1e12, "GFLOP": 1e9, "MFLOP": 1e6, "FLOP": 1.0})
    if kind == "rate":
        return f"{_digits(value)} tokens/s"
    return _scaled(value, {"B": 1e9, "M": 1e6, "": 1.0}) if kind == "count" else f"{value:,.6g}"


def word_of(cost: str) -> str:
    """The word that users write for a cost: `memory` for `memory_bytes`; a table's own names stay as they are."""
    return _COSTS[cost][0] if cost in _COSTS else cost


def _parse_bound(part: str, names: Sequence[str] | None) -> Bound:
    match = _BOUND.fullmatch(part)
    if match is None:
        hint = "; write digits without commas: 8000 or 8_000" if part.strip().isdigit() else ""
        raise BadBudget(f"budget: cannot read {part.strip()!r}; expected WORD=VALUE, WORD<=VALUE or WORD>=VALUE{hint}")
    word, op, value = match["word"], match["op"], match["value"]
    cost = _cost_named(word, names)
    if names is not None:
        return Bound(cost=cost, op=">=" if op == ">=" else "<=", value=_number(part, value, {"": 1.0})[0])
    natural: Op = ">=" if cost in _LOWER else "<="
    if op not in ("=", natural):
        what = "more is better: it needs a lower bound" if cost in _LOWER else "less is better: it needs an upper bound"
        raise BadBudget(f"budget: {part.strip()!r}: for {word}, {what}; write {word}{natural}{value}")
    number, relative = _number(part, value, _UNITS[_COSTS[cost][1]] | {"%": 0.01, "x": 1.0})
    if number <= 0:
        raise BadBudget(f"budget: {part.strip()!r}: the value must be above 0")
    return Bound(cost=cost, op=natural, value=number, relative=relative)


def _cost_named(word: str, names: Sequence[str] | None) -> str:
    """The cost that a word means: one of `names` as it stands, or one of befit's own in any case."""
    known = {name: name for name in names} if names is not None else _WORDS
    given = word if names is not None else word.lower()
    if given in known:
        return known[given]
    near = difflib.get_close_matches(given, known, n=1)
    listed = ", ".join(known if names is not None else dict.fromkeys(w for w, _ in _COSTS.values())) or "none at all"
    raise BadBudget(f"budget: unknown cost {word!r}{f', did you mean {near[0]!r}?' if near else ';'} Known: {listed}")


def _number(part: str, text: str, units: Mapping[str, float]) -> tuple[float, bool]:
    """A finite value in base units, and whether it is relative to the parent."""
    match = _VALUE.fullmatch(text)
    try:
        number = float(match["number"]) if match else math.nan
    except ValueError:
        number = math.nan
    if match is None or not math.isfinite(number):
        raise BadBudget(f"budget: {part.strip()!r}: expected a finite number, got {text!r}")
    # GB, gb and GIB may stand for themselves; Gb means bits to many and is refused.
    unit, spellings = match["unit"], {spelt: u for u in units for spelt in (u.lower(), u.upper(), u)}
    if unit not in spellings:
        listed = ", ".join(u for u in units if u)
        what = f"unknown unit {unit!r}" if unit else "a unit is missing"
        raise BadBudget(
            f"budget: {part.strip()!r}: {what}; expected {f'one of {listed}' if listed else 'a plain number'}"
        )
    name = spellings[unit]
    value = number / 100 if name == "%" else number * units[name]
    if not math.isfinite(value):
        raise BadBudget(f"budget: {part.strip()!r}: the number is too large")
    return value, name in ("%", "x")


def _resolve(bound: Bound, parent: Mapping[str, float]) -> Bound:
    if not bound.relative:
        return bound
    cost = parent.get(bound.cost, math.nan)
    if not (math.isfinite(cost) and cost > 0):
        got = repr(parent[bound.cost]) if bound.cost in parent else "none"
        raise BadBudget(f"budget: {bound} is relative, but the parent's {bound.cost} is {got}; give an absolute bound")
    return replace(bound, value=bound.value * cost, relative=False)


def _cost(bound: Bound, costs: Mapping[str, float]) -> float:
    if bound.relative:
        raise BadBudget(f"budget: {bound} is relative to the parent; call resolve(parent costs) first")
    if bound.cost not in costs:
        raise BadBudget(f"budget: {bound} cannot be checked: costs given are {', '.join(costs) or 'none'}")
    return costs[bound.cost]


def _tighten(bound: Bound, factor: float) -> Bound:
    if factor == 1.0 or bound.op == ">=":
        return bound
    if bound.relative:
        raise BadBudget(f"budget: {bound} is relative to the parent; call resolve(parent costs) before tighten")
    if not (math.isfinite(factor) and factor > 0):
        raise BadBudget(f"budget: the factor for {bound.cost} must be a number above 0, got {factor!r}")
    return replace(bound, value=bound.value * factor)


def _sentence(bound: Bound, value: float) -> str:
    free = -bound.excess(value) * 100
    percent = "under 1 %" if 0 < abs(free) < 1 else f"{abs(free):.0f} %"
    limit, got = human(bound.cost, bound.value), human(bound.cost, value)
    if bound.op == "<=":
        return f"{word_of(bound.cost)} {got} of {limit} allowed ({percent} {'free' if bound.met(value) else 'over'})"
    return f"{word_of(bound.cost)} {got} of at least {limit} ({percent} {'above' if bound.met(value) else 'short'})"


def _relative_text(value: float) -> str:
    percent = f"{_plain(value * 100)}%"
    return percent if len(percent) < 9 and float(percent[:-1]) / 100 == value else f"{_plain(value)}x"


def _exact_text(kind: str, value: float) -> str:
    """The shortest exact text: in the largest unit that needs few digits, else in the base unit."""
    for unit, factor in _UNITS[kind].items():
        text = _plain(value / factor)
        if factor > 1 and len(text) < 7 and value >= factor and float(text) * factor == value:
            return text + unit
    return _plain(value) + {"bytes": "B", "ms": "ms"}.get(kind, "")


def _plain(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def _kind_of(cost: str) -> str:
    return next((kind for ending, kind in (("_bytes", "bytes"), ("_ms", "ms")) if cost.endswith(ending)), "plain")


def _scaled(value: float, units: Mapping[str, float]) -> str:
    """`value` in the largest unit that leaves at least 1 before the point, else in the smallest."""
    # 999.95 and more would print as 1000 of the smaller unit.
    unit = next((u for u, factor in units.items() if abs(value) >= factor * 0.99995), list(units)[-1])
    return f"{_digits(value / units[unit], whole=units[unit] == 1 and value == int(value))} {unit}".rstrip()


def _digits(value: float, whole: bool = False) -> str:
    """Three significant digits, and every digit before the point; no point if `whole`."""
    return f"{value:,.0f}" if whole or abs(value) >= 99.95 else f"{value:#.3g}"


def _bound_from_json(data: Any, index: int) -> Bound:
    entry = _only_keys(data, ("cost", "op", "value", "relative"), f"budget, bound {index}")
    cost, value, relative = entry["cost"], entry["value"], entry["relative"]
    if not isinstance(cost, str) or not isinstance(relative, bool):
        raise BadBudget(f"budget, bound {index}: 'cost' must be a text and 'relative' true or false, got {entry!r}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadBudget(f"budget, bound {index}: 'value' must be a number, got {value!r}")
    return Bound(cost=cost, op=entry["op"], value=float(value), relative=relative)


def _only_keys(data: Any, keys: tuple[str, ...], where: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise BadBudget(f"{where}: expected an object with the keys {', '.join(keys)}, got {data!r}")
    given: dict[str, Any] = dict(cast("Mapping[str, Any]", data))
    if set(given) != set(keys):
        raise BadBudget(f"{where}: got the keys {sorted(map(str, given))}; expected exactly {sorted(keys)}")
    return given
