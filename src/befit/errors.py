"""The errors befit raises on purpose. Every message says what was given, what was expected and what to do.

    BefitError
    ├── BadBudget          a budget or workload text that cannot be read          (also ValueError)
    ├── BadData            training or evaluation text that cannot be used        (also ValueError)
    ├── BadProposal        proposed source text that is no network                (also ValueError)
    ├── BadTable           a solver table that does not have the documented form  (also ValueError)
    ├── DiskFull           no room for a file that had to be written; what was there is intact
    ├── IllegalArch        an architecture outside its space                      (also ValueError)
    ├── Infeasible         no architecture of the space meets the budget
    ├── TrialFailed        a candidate that could not be scored: out of memory, NaN, too slow, over budget as measured
    ├── UnsupportedModel   a parent befit cannot take apart
    └── RunConflict        a run directory that holds something else

Anything else that escapes is a bug in befit, and says so by being an ordinary Python error.
"""

from collections.abc import Mapping


class BefitError(Exception):
    """Base of all errors that are the user's to fix; the command line prints them without a traceback."""


class BadBudget(BefitError, ValueError):
    """A budget or workload that cannot be parsed: unknown word, unknown unit, impossible number."""


class BadData(BefitError, ValueError):
    """Text that cannot be used: not text or JSONL, too short, missing field."""


class BadProposal(BefitError, ValueError):
    """Source text that was proposed as a network and is none; `reason` is a short code that is counted."""

    def __init__(self, message: str, *, reason: str = "contract") -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return _bad_proposal, (str(self), self.reason)


class BadTable(BefitError, ValueError):
    """A solver table that does not have the documented form."""


class DiskFull(BefitError):
    """No room left for a file; nothing that was complete before has been touched."""


class IllegalArch(BefitError, ValueError):
    """An architecture that its space does not contain, or JSON that is no architecture."""


class TrialFailed(BefitError):
    """A candidate that could not be scored; the study goes on.

    `reason` is one of `REASONS`, the message has the details.
    """

    def __init__(self, message: str, *, reason: str = "crash") -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return _trial_failed, (str(self), self.reason)


REASONS = ("over-budget", "invalid", "nan", "out-of-memory", "timeout", "crash", "killed", "surplus", "output")
"""Why a trial has no score, as reports count them; "output": it printed, or left, what is no answer."""


class UnsupportedModel(BefitError):
    """A parent of a family, or with a feature, that befit does not know how to take apart."""


class RunConflict(BefitError):
    """A run directory that was made with another configuration."""


class Infeasible(BefitError):
    """No choice meets the budget.

    `binding` names the bound that cannot be met; `nearest` gives, for every bounded cost, its value at the
    choice that comes nearest to meeting all bounds (same names and units as the budget).
    """

    def __init__(self, message: str, *, binding: str, nearest: Mapping[str, float]) -> None:
        super().__init__(message)
        self.binding = binding
        self.nearest = dict(nearest)

    def __reduce__(self) -> tuple[object, ...]:
        return _infeasible, (str(self), self.binding, self.nearest)


def _bad_proposal(message: str, reason: str) -> BadProposal:
    return BadProposal(message, reason=reason)


def _trial_failed(message: str, reason: str) -> TrialFailed:
    return TrialFailed(message, reason=reason)


def _infeasible(message: str, binding: str, nearest: Mapping[str, float]) -> Infeasible:
    """Rebuild after pickling: keyword-only arguments do not survive the default protocol."""
    return Infeasible(message, binding=binding, nearest=nearest)
