"""What a study is: its storage, its searcher, its objectives, and what each of its trials may take."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from befit.arch.space import Space
from befit.errors import BadBudget, BadData
from befit.search.halving import Halving
from befit.search.owner import GRACE
from befit.search.pricing import Pricer
from befit.search.trial import COST_OF, Fidelity


@dataclass(frozen=True, kw_only=True)
class StudySpec:
    """What a study is."""

    storage: str
    """A file (`runs/edge/study.sqlite`, or Optuna's journal if it ends in `.journal`) or a database's URL."""
    name: str = "search"
    """Of the study in the storage."""
    searcher: str = "evolution"
    """A name that `befit.search.sampler.sampler_of` knows."""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The searcher's settings."""
    trials: int = 50
    """Evaluations, those that fail by themselves included; at least 1. A study that has fewer is continued."""
    objectives: tuple[str, ...] = ("accuracy",)
    """accuracy first; then any of params, macs, memory, latency, which are to be small."""
    seed: int = 0
    fidelity: Fidelity = field(default_factory=Fidelity)
    """What each evaluation may take."""
    halving: Halving | None = None
    """Successive halving; none lets every trial run to its end."""
    timeout: float | None = None
    """Wall-clock seconds after which an evaluation is ended, above 0."""
    refusals: int = 1000
    """Trials in a row that may end before any evaluation (over the budget, outside the space) until the study gives up."""
    grace: float = GRACE
    """Seconds of silence after which a coordinator on another machine counts as dead."""

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("refusals", 1)):
            if (told := getattr(self, name)) < least:
                raise BadData(f"study: {name} must be at least {least}, got {told}")
        if self.timeout is not None and not self.timeout > 0:
            raise BadData(f"study: timeout must be above 0 seconds, got {self.timeout}")
        known = ", ".join(COST_OF)
        if self.objectives[:1] != ("accuracy",) or any(name not in COST_OF for name in self.objectives[1:]):
            raise BadBudget(f"objectives: accuracy first, then any of {known}; got {', '.join(self.objectives)}")
        if len(set(self.objectives)) < len(self.objectives):
            raise BadBudget(f"objectives: each once, got {', '.join(self.objectives)}")


def facts(spec: StudySpec, space: Space, pricer: Pricer | None) -> dict[str, Any]:
    """What decides which archs are asked for and what their values mean."""
    told = {
        "choices": {name: [choice.options, choice.when] for name, choice in space.choices.items()},
        "searcher": spec.searcher,
        "options": dict(spec.options),
        "objectives": spec.objectives,
        "seed": spec.seed,
        "fidelity": spec.fidelity.to_json(),
        "halving": None if spec.halving is None else [spec.halving.first, spec.halving.factor],
        "budget": None if pricer is None or pricer.budget is None else str(pricer.budget),
    }
    return json.loads(json.dumps(told))  # lists for tuples, as the storage gives them back
