"""A latency model of a space: sample its networks, measure them in turns on the target, fit.

    model = fit_latency(cell(), task, Target(engine="onnx"))
    model(arch), model.median_error()             # milliseconds; how far off it was on networks that it had not seen
    write_json(path, model.to_json())             # a device's table: read_latency(path, ...) where the device is not

There is a model for the spaces `cell` and `mobile`, whose networks are sums of known parts. A network of the user's own may
be anything: its archs are measured one by one.
"""

import functools
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from befit.arch.cell import parse
from befit.arch.space import Arch, Value
from befit.arch.task import ImageTask
from befit.cost.image_latency import Checked, LatencyModel, MeasuredArchs, Terms, fit_rates, read_measured
from befit.cost.image_terms import cell_terms, mobile_terms
from befit.cost.target import Target
from befit.errors import BadTable, BefitError
from befit.progress import Progress, silent
from befit.vision.blueprint import Blueprint
from befit.vision.timing import EFFORT, Effort, machine_of, measure_many, resolved, versions_of

NETWORKS = {"cell": (16, 6), "mobile": (48, 12)}
"""Networks that are fitted to, and held out: about three for each term that matters."""
FIT_EFFORT = Effort(rounds=60, seconds=60.0, tolerance=0.03)
"""For all networks together."""

TOGETHER_BYTES = 2**29
"""Networks whose memory comes to no more are timed in turns; larger sets in groups, one after the other."""

Price = LatencyModel | MeasuredArchs
"""Milliseconds of an arch."""


def has_model(blueprint: Blueprint) -> bool:
    """Whether networks of the blueprint can be priced by a model; if not, each must be measured."""
    return blueprint.name in NETWORKS


def terms_of(blueprint: Blueprint, task: ImageTask, target: Target) -> Terms:
    """What the time of the blueprint's archs is made of on the target. Raises `BefitError` where that is not known."""
    match blueprint.name:
        case "cell":
            return functools.partial(cell_terms, pruned=target.engine == "onnx")
        case "mobile":
            return functools.partial(mobile_terms, task=task)
    raise BefitError(
        f"latency: there is no model for networks of {blueprint.name!r}, only for {' and '.join(NETWORKS)}; "
        "measure each of its archs, or give a table with the columns arch and latency_ms"
    )


def fit_latency(
    blueprint: Blueprint,
    task: ImageTask,
    target: Target,
    *,
    networks: tuple[int, int] | None = None,
    effort: Effort = FIT_EFFORT,
    seed: int = 0,
    progress: Progress = silent,
) -> LatencyModel:
    """Measure random networks of the blueprint, and fit a model to them.

    `networks`: how many are fitted to and how many are held out. Raises `BefitError` for a blueprint without a model, and as
    `measure_many` does.
    """
    terms = terms_of(blueprint, task, target)
    fitted, held_out = networks or NETWORKS[blueprint.name]
    archs = _sampled(blueprint, fitted + held_out, random.Random(seed))
    times = measure_archs(blueprint, archs, task, target, effort=effort, progress=progress)
    seen, rest = archs[:fitted], archs[fitted:]
    model = LatencyModel(
        target=resolved(target),
        machine=machine_of(target).name,
        versions=versions_of(target),
        blueprint=blueprint.name,
        task=task,
        reference_macs=_reference(blueprint, task),
        rates=fit_rates([terms(arch) for arch in seen], [times[arch] for arch in seen]),
        fitted=len(seen),
        terms=terms,
    )
    return replace(model, held_out=tuple(checked(model, arch, times[arch]) for arch in rest))


def checked(model: LatencyModel, arch: Arch, measured_ms: float) -> Checked:
    """What the model says of a network, beside what was measured."""
    return Checked(arch=arch.to_json(), predicted_ms=model(arch), measured_ms=measured_ms)


def measure_archs(
    blueprint: Blueprint,
    archs: Sequence[Arch],
    task: ImageTask,
    target: Target,
    *,
    effort: Effort = EFFORT,
    progress: Progress = silent,
) -> dict[Arch, float]:
    """Median milliseconds of different archs, timed in turns, as many together as take no more than `TOGETHER_BYTES`.

    The seconds of `effort` are those of all archs.
    """
    groups, room = list[list[Arch]](), 0
    for arch in dict.fromkeys(archs):
        size = blueprint.count(arch, task).memory_bytes
        if room < size:
            groups.append([])
            room = TOGETHER_BYTES
        groups[-1].append(arch)
        room -= size
    found = dict[Arch, float]()
    for group in groups:
        modules = {str(place): blueprint.build(arch, task) for place, arch in enumerate(group)}
        share = replace(effort, seconds=effort.seconds * len(group) / len(archs))
        timings = measure_many(modules, task, target, effort=share, progress=progress)
        found |= {arch: timing.median_ms for arch, timing in zip(group, timings.values(), strict=True)}
    return found


@dataclass(frozen=True, kw_only=True)
class MeasuredHere:
    """The price of networks that there is no model for: each is built and measured when it is asked for, once."""

    blueprint: Blueprint
    task: ImageTask
    target: Target
    effort: Effort = EFFORT
    """For each network."""
    _known: dict[Arch, float] = field(default_factory=dict[Arch, float], init=False, repr=False, compare=False)

    def __call__(self, arch: Arch) -> float:
        """Median milliseconds of one call. Raises as the blueprint's build and `measure_many` do."""
        if arch not in self._known:
            self._known.update(measure_archs(self.blueprint, [arch], self.task, self.target, effort=self.effort))
        return self._known[arch]


def read_latency(file: Path, blueprint: Blueprint, task: ImageTask, target: Target | None = None) -> Price:
    """A device's table measured elsewhere: JSON of a `LatencyModel`, or CSV with the columns `arch` and `latency_ms`.

    An arch in CSV is a JSON object of options; for the cell space the benchmark's text will do. Raises `BadTable` for a file
    of another form, another blueprint, task or (where one is given) target.
    """
    try:
        if file.suffix.lower() == ".csv":
            return read_measured(file, blueprint.space, functools.partial(_arch, blueprint))
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadTable(f"latency table {file}: cannot be read: {error}; expected .json or .csv") from error
    told = LatencyModel.from_json(data, lambda _: {})  # which terms are right depends on the engine, told by the file
    for what, given, wanted in (
        ("networks of", told.blueprint, blueprint.name),
        ("images of", told.task, task),
        ("networks with multiply-adds", told.reference_macs, _reference(blueprint, task)),
        ("the target", told.target, resolved(target or told.target)),
    ):
        if given != wanted:
            raise BadTable(f"latency table {file} is for {what} {given}, not {wanted}; measure it for this search")
    return replace(told, terms=terms_of(blueprint, task, told.target))


def _arch(blueprint: Blueprint, text: str) -> Arch:
    if blueprint.name == "cell" and text.startswith("|"):
        return parse(text)
    values = json.loads(text)
    if not isinstance(values, dict):
        raise BadTable(f"expected an arch as a JSON object of options, got {text!r:.100}")
    return blueprint.space.arch(values)


def _reference(blueprint: Blueprint, task: ImageTask) -> int:
    """Multiply-adds of one arch that every search in this space knows: of first options, or the first legal one."""
    return blueprint.count(next(blueprint.space.enumerate()), task).macs


def _sampled(blueprint: Blueprint, number: int, rng: random.Random) -> list[Arch]:
    """Different archs, fewer if the space has no more: those of all first, second, … options, then random ones.

    The former are a cell of one operation each, or the smallest to the largest network: random ones alone seldom tell what
    the rest of a network takes.
    """
    found = dict[Arch, None]()
    for place in range(max(len(choice.options) for choice in blueprint.space.choices.values())):
        taken = dict[str, Value]()
        for name, choice in blueprint.space.choices.items():
            if choice.open(taken):
                taken[name] = choice.options[min(place, len(choice.options) - 1)]
        if blueprint.space.contains(taken) and len(found) < number:
            found[blueprint.space.arch(taken)] = None
    for _ in range(20 * number):
        if len(found) == number:
            break
        found[blueprint.space.sample(rng)] = None
    return list(found)
