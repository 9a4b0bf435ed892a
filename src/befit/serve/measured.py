"""What a serving engine did with one model under one workload, as numbers.

All requests of the batch arrive at once. Prefill is over when every request has its first token; what follows is decode. An
engine may let the first requests decode while the last are still being read: that is its business, and part of the time.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from befit.cost.latency import Latency, exact
from befit.cost.workload import Workload
from befit.errors import BadBudget


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One model, one workload: measured, none of it predicted."""

    first_ms: float
    """From the batch's arrival until every request has its first token."""
    mean_first_ms: float
    """From the batch's arrival to the first token of a request, on average over requests."""
    total_ms: float
    """From the batch's arrival until every request has its last token."""
    weight_bytes: int
    """Weights on the device."""
    kv_tokens: int
    """Tokens whose keys and values fit in the memory that the engine keeps for them."""

    def latency(self, workload: Workload) -> Latency:
        """In the terms of latency tables; decode is spread over all generated tokens, so that the sum is the total."""
        return Latency(prefill_ms=self.first_ms, decode_ms=(self.total_ms - self.first_ms) / workload.generate)

    def tokens_per_s(self, workload: Workload) -> float:
        """Generated tokens of all requests each second."""
        return 1000 * workload.batch * workload.generate / self.total_ms

    def each_token_ms(self, workload: Workload) -> float:
        """Time per output token after the first."""
        return (self.total_ms - self.first_ms) / (workload.generate - 1)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them back."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Measured":
        """Read what `to_json` wrote. Raises `BadTable` for an unknown or missing key."""
        return Measured(**exact(Measured, data))


def check_generates(workload: Workload) -> None:
    """Raise `BadBudget` for a workload without a second token, in which decode cannot be told from prefill."""
    if workload.generate < 2:
        raise BadBudget(
            "workload: a serving engine tells decode from prefill by the tokens after the first, "
            f"got generate={workload.generate}; give generate=2 or more"
        )
