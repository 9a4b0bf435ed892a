"""The loop of a search: ask for an arch, price it, evaluate it elsewhere, tell the result; until there are enough trials.

One process, the coordinator, asks and tells; workers only evaluate. All that is known lies in an Optuna storage, so the
study may be killed at any moment and goes on where it was, and several coordinators, on machines that share a database, may
work on one study. A trial that was under way when its coordinator died is told failed ("killed") and its arch is tried
again, under a new number but with everything that its sampler had noted; what is killed takes no trial of the study, so the
sequence of archs is the one of a study that nobody killed (exactly so with one worker).

Coordinators need no agreement on who takes the last trial: a trial counts by its number. One that finds enough counting
trials before it is told failed ("surplus") by the coordinator that asked for it.
"""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING

from befit.arch.space import Space
from befit.errors import RunConflict
from befit.progress import Progress, silent
from befit.search.coordinate import Coordinator
from befit.search.owner import Pulse, this_owner
from befit.search.pool import Crew
from befit.search.pricing import Pricer
from befit.search.sampler import sampler_of
from befit.search.spec import StudySpec, facts
from befit.search.storage import opened, quiet_optuna
from befit.search.trial import Evaluate, TrialRecord, record
from befit.search.workers import open_pool, refuse_in_worker

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.study import Study

FACTS = "befit"
"""Attribute of the study: what must be the same whenever it goes on."""


def run_study(
    spec: StudySpec,
    space: Space,
    evaluate: Evaluate,
    *,
    pricer: Pricer | None = None,
    crew: Crew | None = None,
    sampler: "BaseSampler | None" = None,
    progress: Progress = silent,
) -> list[TrialRecord]:
    """Run or continue a study until `spec.trials` trials have ended, here and at other coordinators; all trials of it.

    The crew evaluates: local processes, one unless told otherwise, or a Ray cluster. `evaluate` should be picklable; if it is
    not, a warning says so and trials run in this process. `sampler` replaces the spec's searcher. Ctrl-C ends what is under
    way and raises `KeyboardInterrupt`; the same call continues.

    Raises `Infeasible` if nothing keeps the budget, `RunConflict` if the storage holds another study of this name, and
    whatever a searcher raises.
    """
    refuse_in_worker()
    if pricer is not None:
        pricer.require_feasible(seed=spec.seed)
    with ExitStack() as stack:
        pool = stack.enter_context(closing(open_pool(evaluate, crew or Crew(), timeout=spec.timeout)))
        study = stack.enter_context(open_study(spec, space, sampler, pricer))
        owner = this_owner()
        stack.enter_context(Pulse(owner, study.set_user_attr))
        loop = Coordinator(spec=spec, space=space, study=study, pool=pool, pricer=pricer, owner=owner)
        ended = stack.enter_context(closing(loop.ended()))
        for _ in progress(ended, "search", total=spec.trials):
            pass
        return loop.records()


@contextmanager
def open_study(
    spec: StudySpec, space: Space, sampler: "BaseSampler | None" = None, pricer: Pricer | None = None
) -> "Iterator[Study]":
    """The Optuna study of a spec, made if there is none. Raises `RunConflict` if there is another one of that name."""
    import optuna

    if sampler is None:
        allowed = None if pricer is None else pricer.allowed
        excess = None if pricer is None or pricer.budget is None else pricer.excess
        sampler = sampler_of(spec.searcher, space, seed=spec.seed, allowed=allowed, excess=excess, options=spec.options)
    with quiet_optuna(), opened(spec.storage) as storage:
        study = optuna.create_study(
            storage=storage,
            study_name=spec.name,
            sampler=sampler,
            directions=["maximize", *["minimize" for _ in spec.objectives[1:]]],
            load_if_exists=True,
        )
        now = facts(spec, space, pricer)
        held = study.user_attrs.get(FACTS)
        if held is None:
            study.set_metric_names(list(spec.objectives))
            study.set_user_attr(FACTS, now)
        elif differing := [name for name in now if held.get(name) != now[name]]:
            shown = "; ".join(f"{name} was {held.get(name)!r}, now {now[name]!r}" for name in differing)
            raise RunConflict(
                f"the storage holds a study {spec.name!r} that differs ({shown}); give another name or storage, or the "
                "old values to continue it"
            )
        yield study


def read_study(storage: str, name: str = "search") -> list[TrialRecord]:
    """All trials of a stored study, running or not. Raises `RunConflict` if there is none of that name."""
    import optuna

    with quiet_optuna(), opened(storage) as held:
        try:
            study = optuna.load_study(study_name=name, storage=held, sampler=optuna.samplers.RandomSampler())
        except KeyError as error:
            raise RunConflict(f"there is no study {name!r} in {storage}") from error
        return [record(trial) for trial in study.get_trials(deepcopy=False)]
