"""The searchers by the name that users write."""

import inspect
from collections.abc import Mapping
from typing import Any

from befit.errors import BefitError
from befit.search.evolution import Evolution
from befit.search.local_search import LocalSearch
from befit.search.predictor import Predictor
from befit.search.random_search import RandomSearch
from befit.search.reinforce import Reinforce
from befit.search.searcher import Searcher

SEARCHERS: dict[str, type[Searcher]] = {
    "random": RandomSearch,
    "evolution": Evolution,
    "local": LocalSearch,
    "reinforce": Reinforce,
    "predictor": Predictor,
}


def searcher_of(name: str, options: Mapping[str, Any] | None = None) -> Searcher:
    """The searcher of this name with these settings. `BefitError` for a name or a setting that there is not."""
    if name not in SEARCHERS:
        raise BefitError(f"searcher: expected one of {', '.join(SEARCHERS)}, got {name!r}")
    made = SEARCHERS[name]
    known = list(inspect.signature(made).parameters)
    if unknown := [option for option in options or {} if option not in known]:
        raise BefitError(f"searcher {name}: it has no {', '.join(unknown)}; its settings: {', '.join(known) or 'none'}")
    return made(**(options or {}))
