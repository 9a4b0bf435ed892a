"""befit fits neural networks to the hardware they must run on.

    parent ─ rank ─ sort ─ library ─ score ─ solve(budget) ─ assemble ─ polish ─ heal ─ child

`befit.puzzle.pipeline.puzzle(PuzzleConfig(...))` refits a trained language model to a budget, block by block, and leaves an
ordinary checkpoint with a report that shows why; `befit.load(folder)` loads the child.

    parent ─ rank ─ sort ─ score axes ─ train(router, budgets) ─ nested model ─ cut(budget) ─ member

`befit.elastic.pipeline.elastic(ElasticConfig(...))` trains one nested model, out of which `befit.cut` takes any size in seconds.

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
    from befit.budget import Budget as Budget
    from befit.cost.workload import Workload as Workload
    from befit.elastic.config import ElasticConfig as ElasticConfig
    from befit.elastic.cut import cut as cut
    from befit.errors import BefitError as BefitError
    from befit.errors import Infeasible as Infeasible
    from befit.lm.child import load as load
    from befit.puzzle.config import PuzzleConfig as PuzzleConfig
    from befit.puzzle.solve import solve as solve

_HOMES = {
    "BefitError": "befit.errors",
    "Budget": "befit.budget",
    "DecoderArch": "befit.arch.decoder",
    "DecoderSpace": "befit.arch.decoder_space",
    "ElasticConfig": "befit.elastic.config",
    "Infeasible": "befit.errors",
    "Member": "befit.arch.member",
    "PuzzleConfig": "befit.puzzle.config",
    "Workload": "befit.cost.workload",
    "cut": "befit.elastic.cut",
    "load": "befit.lm.child",
    "solve": "befit.puzzle.solve",
}

__all__ = [
    "BefitError",
    "Budget",
    "DecoderArch",
    "DecoderSpace",
    "ElasticConfig",
    "Infeasible",
    "Member",
    "PuzzleConfig",
    "Workload",
    "cut",
    "load",
    "solve",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'befit' has no attribute {name!r}; public names: {', '.join(_HOMES)}")
    return getattr(import_module(_HOMES[name]), name)
