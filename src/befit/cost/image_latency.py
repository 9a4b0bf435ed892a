"""Latency of any image network of a space, from a few of its networks that were measured whole.

What runs in a network adds up: a network is told by terms (how often an operation occurs, how many multiply-adds all
convolutions of a kind make, how many bytes all activations move), and each term has a rate in milliseconds, never negative,
fitted to whole networks. So what parts share, what an engine fuses and what a cache keeps is in the rates, which separate
measurements of single operations miss. A few more networks are measured and not fitted to: they tell the error.

Written as JSON this is a device's table that can be measured on one machine and used on another.
"""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
from scipy import optimize  # pyright: ignore[reportMissingTypeStubs]

from befit.arch.space import Arch, Space
from befit.arch.task import ImageTask
from befit.cost.target import Target
from befit.errors import BadTable, IllegalArch

Terms = Callable[[Arch], Mapping[str, float]]
"""What a network's time is made of: amounts of at least 0, by name."""

RIDGE = 1e-3
"""Weight of small rates against relative errors, when a term's largest amount counts as 1: only breaks ties between terms
that always occur together."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A network that was measured but not fitted to."""

    arch: Mapping[str, Any]
    """Its options by name."""
    predicted_ms: float
    measured_ms: float

    @property
    def error(self) -> float:
        """Relative: |predicted - measured| / measured."""
        return abs(self.predicted_ms - self.measured_ms) / self.measured_ms


@dataclass(frozen=True, kw_only=True)
class LatencyModel:
    """Milliseconds of one call for any arch of a space, on one target."""

    target: Target
    """Engine, device, batch and threads it was measured with."""
    machine: str
    """Product name of the processor or GPU."""
    versions: Mapping[str, str]
    """Of the software that ran the networks."""
    blueprint: str
    """Name of the blueprint whose archs it prices."""
    task: ImageTask
    """What images the networks got."""
    reference_macs: int
    """Multiply-adds of the arch of all first options: tells apart blueprints of one name but other widths or depths."""
    rates: Mapping[str, float]
    """Milliseconds for one unit of each term, at least 0."""
    fitted: int
    """Networks behind the rates."""
    held_out: tuple[Checked, ...] = ()
    """The honest test of the rates."""
    terms: Terms = field(repr=False, compare=False)
    """What an arch of the blueprint is made of; no part of the JSON form."""
    _known: dict[Arch, float] = field(default_factory=dict[Arch, float], init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, rate in self.rates.items():
            if not _is_number(rate) or rate < 0:
                raise BadTable(f"latency model: the rate of {name!r} must be a number of at least 0, got {rate!r}")

    def __call__(self, arch: Arch) -> float:
        """Milliseconds of one call (of the whole batch). Raises `BadTable` for an arch with terms that were not fitted."""
        if arch not in self._known:
            told = self.terms(arch)
            if unknown := [name for name in told if name not in self.rates]:
                raise BadTable(
                    f"latency model of {self.blueprint!r}: {', '.join(unknown)} in this arch, but in none that was "
                    "measured; measure again, with more networks"
                )
            self._known[arch] = sum(self.rates[name] * amount for name, amount in told.items())
        return self._known[arch]

    def median_error(self) -> float:
        """Relative, of the networks held out; NaN if there are none."""
        return median(one.error for one in self.held_out) if self.held_out else math.nan

    def worst_error(self) -> float:
        """Relative, of the networks held out; NaN if there are none."""
        return max((one.error for one in self.held_out), default=math.nan)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them back."""
        told = {name: getattr(self, name) for name in _KEYS}
        return told | {
            "target": self.target.to_json(),
            "task": self.task.to_json(),
            "versions": dict(self.versions),
            "rates": dict(self.rates),
            "held_out": [asdict(one) for one in self.held_out],
        }

    @staticmethod
    def from_json(data: Any, terms: Terms) -> "LatencyModel":
        """Read what `to_json` wrote. Raises `BadTable` for an unknown or missing key or a wrong type."""
        given = _keys(data, _KEYS, "latency model")
        for name, kind in (("machine", str), ("blueprint", str), ("reference_macs", int), ("fitted", int)):
            _typed(given[name], kind, name)
        for name in ("versions", "rates", "target", "task"):
            _typed(given[name], dict, name)
        held_out: Any = [_checked(one) for one in _typed(given["held_out"], list, "held_out")]
        given["target"], given["task"] = Target.from_json(given["target"]), ImageTask.from_json(given["task"])
        given["held_out"] = tuple(held_out)
        return LatencyModel(**given, terms=terms)


_KEYS = tuple(one.name for one in fields(LatencyModel) if one.init and one.name != "terms")
"""Of the JSON form."""


@dataclass(frozen=True, kw_only=True)
class MeasuredArchs:
    """Latency of archs that were measured one by one, elsewhere."""

    latency_ms: Mapping[Arch, float]
    """By arch."""
    source: str
    """The file, as messages name it."""

    def __call__(self, arch: Arch) -> float:
        """Milliseconds of one call. Raises `IllegalArch` for an arch that was not measured."""
        if arch not in self.latency_ms:
            raise IllegalArch(
                f"{self.source} has no latency of {arch.to_json()}; it has {len(self.latency_ms)} archs. "
                "Search only those, or give a latency model, which prices every arch"
            )
        return self.latency_ms[arch]


def read_measured(file: Path, space: Space, read: Callable[[str], Arch]) -> MeasuredArchs:
    """Read a CSV file with the columns `arch` and `latency_ms`; `read` makes an arch of the text in the first.

    Other columns are ignored. Raises `BadTable` for a missing column, a number that is none or not above 0, and an arch of
    another space, naming the line.
    """
    found = dict[Arch, float]()
    with file.open(newline="", encoding="utf-8") as lines:
        rows = csv.DictReader(lines)
        if missing := {"arch", "latency_ms"} - set(rows.fieldnames or ()):
            raise BadTable(f"{file}: expected columns arch and latency_ms, but {', '.join(sorted(missing))} is missing")
        for row in rows:
            try:
                arch, number = space.arch(read(row["arch"])), float(row["latency_ms"])
            except (IllegalArch, ValueError, TypeError) as error:
                raise BadTable(f"{file}, line {rows.line_num}: {error}") from error
            if not 0 < number < math.inf:
                raise BadTable(f"{file}, line {rows.line_num}: latency_ms must be above 0, got {row['latency_ms']!r}")
            found[arch] = number
    if not found:
        raise BadTable(f"{file}: no line of archs below the header")
    return MeasuredArchs(latency_ms=found, source=str(file))


def fit_rates(told: Sequence[Mapping[str, float]], measured_ms: Sequence[float]) -> dict[str, float]:
    """Milliseconds for one unit of each term: non-negative least squares on relative errors of whole networks.

    `told`: the terms of each network; a term that a network lacks is 0. Raises `BadTable` for fewer than two networks.
    """
    if len(told) < 2:
        raise BadTable(f"latency model: at least two measured networks are needed, got {len(told)}")
    names = dict.fromkeys(name for own in told for name in own)
    units = {name: max(own.get(name, 0.0) for own in told) or 1.0 for name in names}
    rows = np.array([[own.get(name, 0.0) / unit for name, unit in units.items()] for own in told])
    matrix = np.vstack([rows / np.array(measured_ms)[:, None], RIDGE * np.eye(len(units)) / median(measured_ms)])
    target = np.concatenate([np.ones(len(told)), np.zeros(len(units))])
    solution = cast("tuple[Any, float]", optimize.nnls(matrix, target))[0]  # pyright: ignore[reportUnknownMemberType]
    return {name: float(rate) / unit for (name, unit), rate in zip(units.items(), solution, strict=True)}


def _checked(data: Any) -> Checked:
    given = _keys(data, ("arch", "predicted_ms", "measured_ms"), "latency model, held_out")
    _typed(given["arch"], dict, "arch")
    for name in ("predicted_ms", "measured_ms"):
        if not _is_number(given[name]) or given[name] <= 0:
            raise BadTable(f"latency model, held_out: {name} must be a number above 0, got {given[name]!r}")
    return Checked(**given)


def _keys(data: Any, names: Sequence[str], where: str) -> dict[str, Any]:
    given: dict[str, Any] = dict(cast("Mapping[str, Any]", data)) if isinstance(data, Mapping) else {}
    if sorted(map(str, given)) != sorted(names):
        raise BadTable(f"{where}: expected exactly the keys {', '.join(names)}, got {data!r:.200}")
    return given


def _typed(value: Any, kind: type, name: str) -> Any:
    if type(value) is not kind:
        raise BadTable(f"latency model: {name} must be of type {kind.__name__}, got {value!r:.100}")
    return value


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
