"""befit fits neural networks to the hardware they must run on.

    parent ─ rank ─ sort ─ library ─ score ─ solve(budget) ─ assemble ─ polish ─ heal ─ child

`befit.puzzle.pipeline.puzzle(PuzzleConfig(...))` refits a trained language model to a budget, block by block, and leaves an
ordinary checkpoint with a report that shows why; `befit.load(folder)` loads what befit wrote.

    parent ─ rank ─ sort ─ score axes ─ train(router, budgets) ─ nested model ─ cut(budget) ─ member

`befit.elastic.pipeline.elastic(ElasticConfig(...))` trains one nested model, out of which `befit.cut` takes any size in seconds.

    space ─ ask ─ price(budget) ─ evaluate ─ tell ─ front ─ train the best ─ best/

`befit.find(Net, loader, budget="params<=20k")` searches the `Choice`s of any network on any images; `befit search` does it on the
command line.

`Budget` and `Workload` say what is asked, `DecoderArch` and `Member` what was built, `solve` chooses options under bounds from
a plain table.

Importing befit is cheap: torch is loaded when the first name that needs it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from befit.arch.decoder import DecoderArch as DecoderArch
    from befit.arch.decoder_space import DecoderSpace as DecoderSpace
    from befit.arch.member import Member as Member
    from befit.arch.space import Arch as Arch
    from befit.arch.space import Choice as Choice
    from befit.arch.space import Space as Space
    from befit.budget import Budget as Budget
    from befit.cost.workload import Workload as Workload
    from befit.elastic.config import ElasticConfig as ElasticConfig
    from befit.elastic.cut import cut as cut
    from befit.errors import BefitError as BefitError
    from befit.errors import Infeasible as Infeasible
    from befit.loading import load as load
    from befit.puzzle.config import PuzzleConfig as PuzzleConfig
    from befit.puzzle.solve import solve as solve
    from befit.search.config import SearchConfig as SearchConfig
    from befit.search.find import find as find

_HOMES = {
    "Arch": "befit.arch.space",
    "BefitError": "befit.errors",
    "Budget": "befit.budget",
    "Choice": "befit.arch.space",
    "DecoderArch": "befit.arch.decoder",
    "DecoderSpace": "befit.arch.decoder_space",
    "ElasticConfig": "befit.elastic.config",
    "Infeasible": "befit.errors",
    "Member": "befit.arch.member",
    "PuzzleConfig": "befit.puzzle.config",
    "SearchConfig": "befit.search.config",
    "Space": "befit.arch.space",
    "Workload": "befit.cost.workload",
    "cut": "befit.elastic.cut",
    "find": "befit.search.find",
    "load": "befit.loading",
    "solve": "befit.puzzle.solve",
}

__all__ = [
    "Arch",
    "BefitError",
    "Budget",
    "Choice",
    "DecoderArch",
    "DecoderSpace",
    "ElasticConfig",
    "Infeasible",
    "Member",
    "PuzzleConfig",
    "SearchConfig",
    "Space",
    "Workload",
    "cut",
    "find",
    "load",
    "solve",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'befit' has no attribute {name!r}; public names: {', '.join(_HOMES)}")
    return getattr(import_module(_HOMES[name]), name)
