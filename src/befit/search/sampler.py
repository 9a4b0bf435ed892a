"""befit's searchers as Optuna samplers, usable in any study; and Optuna's samplers made to keep a budget and to resume.

    study = optuna.create_study(direction="maximize", sampler=Sampler(Evolution(), space=space))
    study.optimize(lambda trial: accuracy(suggest(trial, space)), n_trials=100)

Neither kind keeps anything that the study's storage does not hold: what was seen is read from the trials each time, and
the random numbers follow from the seed and the trial's position. A study loaded anew in another process proposes the same.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.trial import BaseTrial, FrozenTrial, TrialState

from befit.arch.space import Arch, Space, Value
from befit.errors import BefitError, IllegalArch
from befit.search.named import OPTUNA
from befit.search.pareto import scalarised
from befit.search.searcher import Searcher, Told, View, mutants, rng_of, seed_of
from befit.search.searchers import SEARCHERS, searcher_of

if TYPE_CHECKING:
    from optuna.study import Study

Allowed = Callable[[Arch], bool]
Excess = Callable[[Arch], float]
"""By what share an arch breaks the budget; see `View.excess`."""

NOT_COUNTED = ("killed", "surplus")
"""Reasons for which a trial is as if it had never been: its place is taken by the next one."""


def suggest(trial: BaseTrial, space: Space) -> Arch:
    """The arch of an Optuna trial, asked for choice by choice. `IllegalArch` if the space's rule refuses it, which a
    sampler of this module never lets happen.
    """
    taken = dict[str, Any]()
    for name, choice in space.choices.items():
        if choice.open(taken):
            taken[name] = trial.suggest_categorical(name, choice.options)
    return space.arch(taken)


def arch_of(trial: FrozenTrial, space: Space) -> Arch | None:
    """The arch of a stored trial; None if it ended before all of it was asked for."""
    values = {name: value for name, value in trial.params.items() if name in space.choices}
    try:
        return space.arch(values)
    except IllegalArch:
        return None


class _OfSpace(BaseSampler):
    """What both samplers share: which trials count, what they say, and choices that are proposed together."""

    def __init__(self, space: Space, *, seed: int, allowed: Allowed | None, excess: Excess | None) -> None:
        self.space = space
        self.excess = excess
        self.seed = seed
        self._allowed: Allowed = functools.lru_cache(maxsize=100_000)(allowed or _everything)
        self._distributions = {name: CategoricalDistribution(c.options) for name, c in space.choices.items()}

    def infer_relative_search_space(self, study: "Study", trial: FrozenTrial) -> dict[str, BaseDistribution]:
        del study, trial
        return dict[str, BaseDistribution](self._distributions)

    def sample_relative(
        self, study: "Study", trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """All choices of one arch; how many others were refused is kept in the trial's attribute `refused`."""
        del search_space
        refused = dict[Arch, None]()

        def allowed(arch: Arch) -> bool:
            if not (kept := self._allowed(arch)):
                refused[arch] = None
            return kept

        try:
            arch = self._propose(study, trial, allowed)
        finally:
            study._storage.set_trial_user_attr(trial._trial_id, "refused", len(refused))
        return dict(arch)

    def sample_independent(
        self, study: "Study", trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A parameter that is no choice of the space, such as a learning rate: drawn at random."""
        from optuna.samplers import RandomSampler

        seed = seed_of(self.seed, _position(study, trial), param_name)
        return RandomSampler(seed=seed).sample_independent(study, trial, param_name, param_distribution)

    def _propose(self, study: "Study", trial: FrozenTrial, allowed: Allowed) -> Arch:
        raise NotImplementedError

    def _view(self, study: "Study", trial: FrozenTrial, allowed: Allowed, objective: int | None) -> View:
        others = [one for one in _counted(study) if one.number != trial.number]
        ended = [(arch, one) for one in others if one.state.is_finished() and (arch := arch_of(one, self.space))]
        running = [one for one in others if one.state == TrialState.RUNNING]
        values = _values([one for _, one in ended], study, objective)
        return View(
            space=self.space,
            told=tuple(Told(arch=arch, value=v) for (arch, _), v in zip(ended, values, strict=True)),
            running=tuple(arch for one in running if (arch := arch_of(one, self.space))),
            allowed=allowed,
            excess=self.excess,
            rng=rng_of(self.seed, _position(study, trial)),
        )


class Sampler(_OfSpace):
    """A searcher as an Optuna sampler.

    `allowed` says whether an arch keeps the budget; what it refuses is never made a trial. `excess`, if given, leads into a
    budget that few archs keep. In a study with several objectives the searcher sees their Pareto rank
    (`pareto.scalarised`), or only the one numbered `objective`.
    """

    def __init__(
        self,
        searcher: Searcher,
        space: Space,
        *,
        seed: int = 0,
        allowed: Allowed | None = None,
        excess: Excess | None = None,
        objective: int | None = None,
    ) -> None:
        super().__init__(space, seed=seed, allowed=allowed, excess=excess)
        self.searcher = searcher
        self.objective = objective

    def _propose(self, study: "Study", trial: FrozenTrial, allowed: Allowed) -> Arch:
        return self.searcher.propose(self._view(study, trial, allowed, self.objective))


class Reseeded(_OfSpace):
    """An Optuna sampler, made anew for each trial with a seed of the trial's own, so that a resumed study goes on the same.

    Optuna knows soft constraints only: what breaks them is trained, and then held against it. Here a proposal that is over
    the budget, refused by the space's rule or tried before is drawn again up to `redraws` times, and then changed at random,
    one choice after another, until it is none of these.
    """

    def __init__(
        self,
        factory: Callable[[int], BaseSampler],
        space: Space,
        *,
        seed: int = 0,
        allowed: Allowed | None = None,
        excess: Excess | None = None,
        redraws: int = 20,
    ) -> None:
        super().__init__(space, seed=seed, allowed=allowed, excess=excess)
        self.factory = factory
        self.redraws = redraws

    def before_trial(self, study: "Study", trial: FrozenTrial) -> None:
        self._inner(study, trial).before_trial(study, trial)

    def after_trial(
        self, study: "Study", trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._inner(study, trial).after_trial(study, trial, state, values)

    def _inner(self, study: "Study", trial: FrozenTrial) -> BaseSampler:
        return self.factory(seed_of(self.seed, _position(study, trial)))

    def _propose(self, study: "Study", trial: FrozenTrial, allowed: Allowed) -> Arch:
        view = self._view(study, trial, allowed, 0)
        drawn = list(self._draws(study, trial, view))
        if drawn and view.new(drawn[-1]):
            return drawn[-1]
        if not drawn:
            return view.draw()
        return view.first(mutants(self.space, lambda: drawn[-1], view.rng, patience=100)) or view.draw()

    def _draws(self, study: "Study", trial: FrozenTrial, view: View) -> Iterator[Arch]:
        """Legal proposals, up to the first that is new."""
        inner = self._inner(study, trial)
        for _ in range(self.redraws):
            together = inner.infer_relative_search_space(study, trial)
            relative = inner.sample_relative(study, trial, together) if together else {}
            arch = self._completed(inner, study, trial, relative)
            if arch is not None:
                yield arch
                if view.new(arch):
                    return

    def _completed(
        self, inner: BaseSampler, study: "Study", trial: FrozenTrial, relative: Mapping[str, Any]
    ) -> Arch | None:
        taken = dict[str, Value]()
        for name, choice in self.space.choices.items():
            if choice.open(taken):
                taken[name] = (
                    relative[name]
                    if name in relative
                    else inner.sample_independent(study, trial, name, self._distributions[name])
                )
        return self.space.arch(taken) if self.space.contains(taken) else None


def _everything(arch: Arch) -> bool:
    del arch
    return True


def _counted(study: "Study") -> list[FrozenTrial]:
    trials = study.get_trials(deepcopy=False)
    return [one for one in trials if one.user_attrs.get("reason") not in NOT_COUNTED]


def _position(study: "Study", trial: FrozenTrial) -> int:
    """How many trials that count were asked for before this one."""
    return sum(1 for one in _counted(study) if one.number < trial.number)


def _values(trials: list[FrozenTrial], study: "Study", objective: int | None) -> list[float | None]:
    """One number for each trial, higher is better; None for what failed."""
    from optuna.study import StudyDirection

    signs = [1.0 if direction == StudyDirection.MAXIMIZE else -1.0 for direction in study.directions]
    told = [trial.values if trial.state != TrialState.FAIL and trial.values else None for trial in trials]
    upward = [None if one is None else [sign * v for sign, v in zip(signs, one, strict=True)] for one in told]
    if objective is None and len(signs) > 1:
        return scalarised(upward)
    return [None if one is None else one[objective or 0] for one in upward]


def sampler_of(
    name: str,
    space: Space,
    *,
    seed: int = 0,
    allowed: Allowed | None = None,
    excess: Excess | None = None,
    options: Mapping[str, Any] | None = None,
) -> BaseSampler:
    """A sampler by name: one of `searchers.SEARCHERS`, or Optuna's `nsga2`, `nsga3`, `tpe`, `gp`. `options` are its settings.

    Raises `BefitError` for a name or a setting that there is not.
    """
    if name in OPTUNA:
        factory = functools.partial(OPTUNA[name], **(options or {}))
        _try(factory, name)
        return Reseeded(factory, space, seed=seed, allowed=allowed, excess=excess, redraws=3 if name == "gp" else 20)
    if name not in SEARCHERS:
        raise BefitError(f"searcher: expected one of {', '.join((*SEARCHERS, *OPTUNA))}, got {name!r}")
    return Sampler(searcher_of(name, options), space, seed=seed, allowed=allowed, excess=excess)


def _try(factory: Callable[[int], BaseSampler], name: str) -> None:
    """Make one now, so that a wrong setting is told before the first trial."""
    try:
        factory(0)
    except (TypeError, ValueError) as error:
        raise BefitError(f"searcher {name}: Optuna refuses its settings: {error}") from error
