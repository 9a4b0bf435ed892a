"""befit fits neural networks to the hardware they must run on.

    parent ─ rank ─ sort ─ library ─ score ─ solve(budget) ─ assemble ─ polish ─ heal ─ child

`befit.puzzle.pipeline.puzzle(PuzzleConfig(...))` refits a trained language model to a budget, block by block, and leaves an
ordinary checkpoint with a report that shows why; `befit.load(folder)` loads the child. `Budget` and `Workload` say what is
asked, `DecoderArch` what was built, `solve` chooses options under bounds from a plain table.

Importing befit is cheap: torch is loaded when the first name that needs it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from befit.arch.decoder import DecoderArch as DecoderArch
    from befit.arch.space import DecoderSpace as DecoderSpace
    from befit.budget import Budget as Budget
    from befit.cost.workload import Workload as Workload
    from befit.errors import BefitError as BefitError
    from befit.errors import Infeasible as Infeasible
    from befit.lm.child import load as load
    from befit.puzzle.config import PuzzleConfig as PuzzleConfig
    from befit.puzzle.solve import solve as solve

_HOMES = {
    "BefitError": "befit.errors",
    "Budget": "befit.budget",
    "DecoderArch": "befit.arch.decoder",
    "DecoderSpace": "befit.arch.space",
    "Infeasible": "befit.errors",
    "PuzzleConfig": "befit.puzzle.config",
    "Workload": "befit.cost.workload",
    "load": "befit.lm.child",
    "solve": "befit.puzzle.solve",
}

__all__ = [
    "BefitError",
    "Budget",
    "DecoderArch",
    "DecoderSpace",
    "Infeasible",
    "PuzzleConfig",
    "Workload",
    "load",
    "solve",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'befit' has no attribute {name!r}; public names: {', '.join(_HOMES)}")
    return getattr(import_module(_HOMES[name]), name)
