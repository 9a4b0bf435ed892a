"""A trial: one arch that is tried, all that the study's storage keeps of it, and reading it back as plain values.

The storage belongs to Optuna; what befit adds lies in the trial's user attributes, under the names below, as JSON. A trial
that has no score says why (`befit.errors.REASONS`). Two reasons are nobody's fault and make a trial count for nothing:
`killed` (its process was ended from outside; the arch is tried again) and `surplus` (another coordinator took the last place).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from befit.arch.space import Arch
from befit.errors import BadData, BefitError, TrialFailed
from befit.search.pareto import dominates

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

ARCH = "arch"
COUNTED, PREDICTED, MEASURED = "counted", "predicted", "measured"
OWNER, AGAIN, REFUSED = "owner", "again", "refused"
REASON, MESSAGE = "reason", "message"
FIDELITY, SECONDS, EPOCHS, DETAILS = "fidelity", "seconds", "epochs", "details"
RUNG = "rung:"
"""Names of user attributes; `rung:3` holds the objectives as they were after 3 epochs."""

COST_OF = {"params": "params", "macs": "macs", "memory": "memory_bytes", "latency": "latency_ms"}
"""Objectives beside accuracy, all to be made small, and the cost that each means."""


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How much an evaluation may take; what is not said is the estimator's own full measure."""

    epochs: float | None = None
    """Passes over the training images, above 0."""
    seconds: float | None = None
    """Of training, above 0; instead of `epochs`."""
    image_side: int | None = None
    """Pixels to which images are resized; as they are if None."""
    data_share: float = 1.0
    """Share of the training images, above 0 and at most 1."""

    def __post_init__(self) -> None:
        for name, told in (("epochs", self.epochs), ("seconds", self.seconds), ("image_side", self.image_side)):
            if told is not None and not told > 0:
                raise BadData(f"fidelity: {name} must be above 0, got {told}")
        if self.epochs is not None and self.seconds is not None:
            raise BadData("fidelity: give epochs or seconds, not both")
        if not 0 < self.data_share <= 1:
            raise BadData(f"fidelity: data_share must be above 0 and at most 1, got {self.data_share}")

    def to_json(self) -> dict[str, float | None]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an evaluation found."""

    value: float
    """Higher is better; accuracy on validation images is 0 to 1."""
    costs: Mapping[str, float] = field(default_factory=dict[str, float])
    """What was measured on the way, by budget names (`latency_ms`, …)."""
    seconds: float = 0.0
    """Wall-clock."""
    epochs: float = 0.0
    """Passes over the training images."""
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Anything else that JSON can keep."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One evaluation to be made."""

    number: int
    """The trial's."""
    arch: Arch
    fidelity: Fidelity
    prunable: bool = False
    """Whether each report waits for the answer that says if it is worth going on."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """How an evaluation ended: with an outcome, or with a reason why there is none; pruned if both are None."""

    number: int
    outcome: Outcome | None = None
    reason: str | None = None
    """One of `befit.errors.REASONS`."""
    message: str = ""
    seconds: float = 0.0
    """Wall-clock, of whatever was done."""


Report = Callable[[int, float], None]
"""Called after an epoch with its number (1, 2, …) and the value so far; raises `Pruned` if it is not worth going on."""
Evaluate = Callable[[Arch, Fidelity, Report], Outcome]
"""Scores one arch. Raises `TrialFailed` with a reason; whatever else it raises counts as a crash of this trial."""


class Pruned(BefitError):
    """Ends an evaluation that others have overtaken. Evaluators let it pass."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial as reports, tables and searchers of other kinds want it: plain values only."""

    number: int
    state: str
    """`waiting`, `running`, `scored`, `pruned` or `failed`."""
    arch: Mapping[str, Any] | None
    """The options by name; None if the trial ended before it had any."""
    value: float | None
    """The first objective: accuracy."""
    values: tuple[float, ...]
    """All objectives, empty without a score."""
    counted: Mapping[str, float]
    """Exact costs: parameters, multiply-adds, memory."""
    predicted: Mapping[str, float]
    """By a model of the device."""
    measured: Mapping[str, float]
    """On the device."""
    reason: str | None
    message: str
    seconds: float
    """Wall-clock of the evaluation."""
    epochs: float
    fidelity: Mapping[str, Any] | None
    """As handed to the evaluator; None if no evaluation was begun."""
    refused: int
    """Proposals over the budget that the searcher dropped before this one."""
    owner: str | None
    """Host, process and its start."""
    again: int | None
    """The number of the killed trial that this one repeats."""
    rungs: Mapping[int, tuple[float, ...]]
    """Objectives after so many epochs, where successive halving looked."""
    details: Mapping[str, Any]

    @property
    def costs(self) -> dict[str, float]:
        """Every cost that is known; measured goes before predicted."""
        return {**self.counted, **self.predicted, **self.measured}

    @property
    def counts(self) -> bool:
        """Whether it takes one of the study's trials: it was evaluated, is being, or failed by itself."""
        return self.state != "failed" or (self.fidelity is not None and self.reason != "killed")


STATES = {"WAITING": "waiting", "RUNNING": "running", "COMPLETE": "scored", "PRUNED": "pruned", "FAIL": "failed"}


def record(trial: "FrozenTrial") -> TrialRecord:
    """Read one trial of an Optuna study."""
    told = trial.user_attrs
    state = STATES[trial.state.name]
    values = tuple(trial.values or ()) if state == "scored" else ()
    rungs = {int(name.removeprefix(RUNG)): tuple(row) for name, row in told.items() if name.startswith(RUNG)}
    return TrialRecord(
        number=trial.number,
        state=state,
        arch=told.get(ARCH),
        value=values[0] if values else None,
        values=values,
        counted=told.get(COUNTED, {}),
        predicted=told.get(PREDICTED, {}),
        measured=told.get(MEASURED, {}),
        reason=told.get(REASON) if state == "failed" else None,
        message=told.get(MESSAGE, ""),
        seconds=told.get(SECONDS, 0.0),
        epochs=told.get(EPOCHS, 0.0),
        fidelity=told.get(FIDELITY),
        refused=told.get(REFUSED, 0),
        owner=told.get(OWNER),
        again=told.get(AGAIN),
        rungs=dict(sorted(rungs.items())),
        details=told.get(DETAILS, {}),
    )


def front(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The scored trials that no other beats: higher accuracy, lower of everything else. Equal ones all stay."""
    scored = [one for one in records if one.values]
    points = [higher_is_better(one.values) for one in scored]
    return [one for one, own in zip(scored, points, strict=True) if not any(dominates(point, own) for point in points)]


def higher_is_better(values: Sequence[float]) -> tuple[float, ...]:
    """Objectives turned so that more is better in each: all but accuracy, the first, change their sign."""
    return (values[0], *(-value for value in values[1:]))


@dataclass(frozen=True, kw_only=True)
class Funnel:
    """How many proposals survived each stage; killed and surplus trials are none of them."""

    proposed: int
    """refused + asked."""
    refused: int
    """Dropped by the searcher: over the budget by exact or predicted costs."""
    asked: int
    """Trials."""
    built: int
    """Evaluations begun."""
    failed: Mapping[str, int]
    """By reason, over-budget (as measured, or proposed by a searcher that knows no budget) included."""
    pruned: int
    scored: int
    front: int
    running: int
    """Begun or waiting, not ended."""
    interrupted: int
    """Killed from outside, their archs tried again, or surplus; outside all other numbers."""


def funnel(records: Sequence[TrialRecord]) -> Funnel:
    """Count the stages of a study."""
    lost = [one for one in records if one.reason in ("killed", "surplus")]
    kept = [one for one in records if one.reason not in ("killed", "surplus")]
    states = Counter(one.state for one in kept)
    # A trial that repeats a killed one does not repeat its searcher's refusals: they are copied nowhere.
    refused = sum(one.refused for one in records)
    return Funnel(
        proposed=refused + len(kept),
        refused=refused,
        asked=len(kept),
        built=sum(one.fidelity is not None for one in kept),
        failed=dict(Counter(one.reason or "crash" for one in kept if one.state == "failed")),
        pruned=states["pruned"],
        scored=states["scored"],
        front=len(front(kept)),
        running=states["running"] + states["waiting"],
        interrupted=len(lost),
    )


def objective_values(outcome: Outcome, costs: Mapping[str, float], objectives: Sequence[str]) -> list[float]:
    """The numbers told to Optuna. Raises `TrialFailed` for a value that is no number, `BadData` for an unknown cost."""
    values = [outcome.value]
    for name in objectives[1:]:
        if COST_OF[name] not in costs:
            raise BadData(
                f"objective {name}: neither the pricing nor the evaluation says {COST_OF[name]}; known here: "
                f"{', '.join(costs) or 'no cost at all'}"
            )
        values.append(costs[COST_OF[name]])
    if not all(math.isfinite(value) for value in values):
        raise TrialFailed(f"not a finite number: {dict(zip(objectives, values, strict=True))}", reason="nan")
    return [float(value) for value in values]
