"""The loop of a study at one coordinator: ask, price, hand out, tell, and look after the trials of coordinators that died."""

import json
import time
import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from befit.arch.space import Arch, Space
from befit.errors import IllegalArch, Infeasible, TrialFailed
from befit.search import trial as attribute
from befit.search.owner import Watch
from befit.search.pool import Pool
from befit.search.pricing import Priced, Pricer
from befit.search.sampler import suggest
from befit.search.spec import StudySpec
from befit.search.trial import COST_OF, Finished, Job, Outcome, TrialRecord, objective_values, record

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

KILLER = "killer"
"""Attribute of a killed trial: the coordinator that told it so, and has to have it tried again."""
PRICES = (attribute.COUNTED, attribute.PREDICTED, attribute.MEASURED)
LOOK_SECONDS = 1.0
"""How often trials of other coordinators are looked at."""


@dataclass
class Coordinator:
    """One process at work on a study. `ended` is the loop; everything else is a step of it."""

    spec: StudySpec
    space: Space
    study: "Study"
    pool: Pool
    pricer: Pricer | None
    owner: str
    running: dict[int, "Trial"] = field(default_factory=dict[int, "Trial"])
    """Asked for by this coordinator, not told."""
    costs: dict[int, dict[str, float]] = field(default_factory=dict[int, dict[str, float]])
    """Of running trials, as priced."""
    refused: int = 0
    """Trials in a row that ended before an evaluation."""
    exhausted: bool = False
    """Whether the searcher has nothing left to propose."""
    watch: Watch = field(init=False)
    looked: float = -1e9
    """When others were last looked at, by the monotonic clock."""

    def __post_init__(self) -> None:
        self.watch = Watch(own=self.owner, grace=self.spec.grace)

    def records(self) -> list[TrialRecord]:
        """All trials as the storage has them now."""
        return [record(trial) for trial in self._trials()]

    def ended(self) -> Generator[int]:
        """Work until the study has its trials, yielding the number of each that has ended, earlier ones at first."""
        shown = set[int]()
        try:
            while True:
                self._look_after_others()
                records = self.records()
                news = [one.number for one in records if one.counts and _over(one) and one.number not in shown]
                shown.update(news)
                yield from news
                if (len(shown) >= self.spec.trials or self.exhausted) and not self.running:
                    return
                asked = self.pool.free > 0 and not self.exhausted and self._begin(records)
                if self.running and not (asked and self.pool.free):
                    for finished in self.pool.wait(self._goes_on, LOOK_SECONDS):
                        self._tell(finished)
                elif not asked:
                    time.sleep(LOOK_SECONDS / 4)  # others have the last trials; should they die, this one repeats them
        finally:
            for number in list(self.running):
                self._give_up(number)

    def _begin(self, records: Sequence[TrialRecord]) -> bool:
        """Ask for one trial if the study has a place for it, and hand it to the pool. Whether there was a place."""
        if sum(one.counts for one in records) >= self.spec.trials and not any(o.state == "waiting" for o in records):
            return False
        trial = self.study.ask()
        trial.set_user_attr(attribute.OWNER, self.owner)
        self.running[trial.number] = trial
        before = sum(record(one).counts for one in self._trials() if one.number < trial.number)
        if before >= self.spec.trials:
            self._fail(trial.number, "surplus", "other coordinators have taken the last places")
            return True
        try:
            arch = self._priced(trial)
        except TrialFailed as failure:
            self._fail(trial.number, failure.reason, str(failure))
            self._count_refusal(failure)
            return True
        except Infeasible as error:
            self._fail(trial.number, "surplus", str(error))
            if before == 0:
                raise
            self.exhausted = True
            warnings.warn(f"the search ends after {before} of {self.spec.trials} trials: {error}", stacklevel=2)
            return False
        self.refused = 0
        trial.set_user_attr(attribute.FIDELITY, self.spec.fidelity.to_json())
        prunable = self.spec.halving is not None
        self.pool.submit(Job(number=trial.number, arch=arch, fidelity=self.spec.fidelity, prunable=prunable))
        return True

    def _priced(self, trial: "Trial") -> Arch:
        """The trial's arch, its costs noted. Raises `TrialFailed` if it is outside the space or over the budget."""
        try:
            arch = suggest(trial, self.space)
        except IllegalArch as error:
            raise TrialFailed(str(error), reason="invalid") from error
        trial.set_user_attr(attribute.ARCH, arch.to_json())
        known = trial.user_attrs
        self.costs[trial.number] = {cost: value for name in PRICES for cost, value in known.get(name, {}).items()}
        # What is tried again keeps its prices: a latency measured anew might fall on the other side of the bound.
        if self.pricer is not None and not (attribute.AGAIN in known and self.costs[trial.number]):
            for priced in self.pricer.stages(arch):
                self._note(trial, priced)
        return arch

    def _note(self, trial: "Trial", priced: Priced) -> None:
        told = (priced.counted, priced.predicted, priced.measured)
        for name, costs in zip(PRICES, told, strict=True):
            if costs and trial.user_attrs.get(name) != dict(costs):
                trial.set_user_attr(name, dict(costs))
        self.costs[trial.number] = priced.costs

    def _count_refusal(self, failure: TrialFailed) -> None:
        """Give up if trial after trial is over before it begins."""
        self.refused += 1
        if self.refused >= self.spec.refusals:
            raise Infeasible(
                f"{self.refused:,} trials in a row ended before any evaluation, the last one {failure.reason}: {failure}; "
                "allow more, or take a searcher that knows the budget",
                binding=failure.reason,
                nearest={},
            )

    def _goes_on(self, number: int, epoch: int, value: float) -> bool:
        """Note what a trial has reached; whether it is worth going on."""
        from optuna.exceptions import UpdateFinishedTrialError

        trial, costs, halving = self.running[number], self.costs[number], self.spec.halving
        try:
            if len(self.spec.objectives) == 1:
                trial.report(value, epoch)
            if halving is None or not halving.rung(epoch):
                return True
            row = [value, *(costs.get(COST_OF[name], float("inf")) for name in self.spec.objectives[1:])]
            trial.set_user_attr(f"{attribute.RUNG}{epoch}", row)
        except UpdateFinishedTrialError:
            return False  # another coordinator took this one for dead, and has the arch tried again
        return halving.goes_on(number, epoch, self.records())

    def _tell(self, finished: Finished) -> None:
        """Note how an evaluation ended, and end its trial."""
        from optuna.exceptions import UpdateFinishedTrialError

        number = finished.number
        try:
            self.running[number].set_user_attr(attribute.SECONDS, round(finished.seconds, 3))
        except UpdateFinishedTrialError:  # as above: what was found here comes too late
            self._forget(number)
            return
        if finished.reason == "killed":  # a machine of the cluster went away: nobody's fault
            self._give_up(number)
        elif finished.reason is not None:
            self._fail(number, finished.reason, finished.message)
        elif finished.outcome is None:
            self._end(number, "PRUNED")
        else:
            self._score(number, finished.outcome)

    def _score(self, number: int, outcome: Outcome) -> None:
        """Note what an evaluation found, and end its trial with it."""
        trial = self.running[number]
        measured = {**trial.user_attrs.get(attribute.MEASURED, {}), **outcome.costs}
        told = {
            attribute.MEASURED: measured if outcome.costs else None,
            attribute.EPOCHS: outcome.epochs,
            attribute.DETAILS: json.loads(json.dumps(dict(outcome.details), default=str)),
        }
        for name, value in told.items():
            if value:
                trial.set_user_attr(name, value)
        try:
            values = objective_values(outcome, {**self.costs[number], **measured}, self.spec.objectives)
        except TrialFailed as failure:
            self._fail(number, failure.reason, str(failure))
        else:
            self._end(number, "COMPLETE", values)

    def _fail(self, number: int, reason: str, message: str) -> None:
        trial = self.running[number]
        trial.set_user_attr(attribute.REASON, reason)
        trial.set_user_attr(attribute.MESSAGE, message[:2000])
        self._end(number, "FAIL")

    def _give_up(self, number: int) -> None:
        """Tell a trial of this coordinator killed, and have its arch tried again."""
        self._forget(number)
        frozen = next(one for one in self._trials() if one.number == number)
        if frozen.state.name == "RUNNING":
            self._kill(frozen)

    def _end(self, number: int, state: str, values: list[float] | None = None) -> None:
        from optuna.trial import TrialState

        self.study.tell(number, values, state=TrialState[state], skip_if_finished=True)
        self._forget(number)

    def _forget(self, number: int) -> None:
        self.running.pop(number)
        self.costs.pop(number, None)

    def _look_after_others(self) -> None:
        """Have the trials of dead coordinators tried again."""
        if time.monotonic() - self.looked < LOOK_SECONDS:
            return
        self.looked = time.monotonic()
        trials, pulses = self._trials(), self.study.user_attrs
        repeated = {one.user_attrs.get(attribute.AGAIN) for one in trials}
        for one in trials:
            if one.number in self.running:
                continue
            # Between asking and signing lie milliseconds; who died just there has no name, and no pulse.
            owner = one.user_attrs.get(attribute.OWNER, f"unknown:{one.number}")
            killer = one.user_attrs.get(KILLER)
            if one.state.name == "RUNNING" and self.watch.dead(owner, pulses):
                self._kill(one)
            elif killer is not None and one.number not in repeated and self.watch.dead(killer, pulses):
                self._repeat(one)  # its killer died before it could do so

    def _kill(self, trial: "FrozenTrial") -> None:
        """Tell a trial killed, unless another coordinator did so first; then have it tried again."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        try:
            held = self._handle(trial)
            held.set_user_attr(attribute.REASON, "killed")
            held.set_user_attr(attribute.MESSAGE, "its coordinator ended before it did")
            held.set_user_attr(KILLER, self.owner)
            self.study.tell(trial.number, state=TrialState.FAIL)
        except (UpdateFinishedTrialError, ValueError):
            return
        self._repeat(trial)

    def _repeat(self, trial: "FrozenTrial") -> None:
        """Have the arch of a killed trial tried again; one without an arch is proposed anew, and the same, anyway."""
        from optuna.trial import TrialState, create_trial

        if attribute.ARCH not in trial.user_attrs:
            return
        # What the sampler noted goes along: NSGA-II, for one, keeps there which generation a trial belongs to.
        noted = {**trial.system_attrs, "fixed_params": dict(trial.params)}
        priced = attribute.FIDELITY in trial.user_attrs
        prices = {name: trial.user_attrs[name] for name in PRICES if priced and name in trial.user_attrs}
        told = {attribute.AGAIN: trial.number, **prices}
        self.study.add_trial(create_trial(state=TrialState.WAITING, system_attrs=noted, user_attrs=told))

    def _handle(self, trial: "FrozenTrial") -> "Trial":
        import optuna

        return optuna.trial.Trial(self.study, trial._trial_id)

    def _trials(self) -> list["FrozenTrial"]:
        return self.study.get_trials(deepcopy=False)


def _over(one: TrialRecord) -> bool:
    return one.state not in ("waiting", "running")
