"""How many tokens fit: what an engine leaves for keys and values beside the weights and its own working memory.

    tokens = (share x memory - weights - overhead) / bytes of a token's keys and values

Weights and bytes of a token are counted exactly. The overhead (activations of one step, CUDA itself, graphs) depends on the
engine and hardly on the model; it is the median over models that were measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from befit.arch.decoder import DecoderArch, DecoderShape
from befit.cost.count import count
from befit.cost.workload import Workload
from befit.errors import BadTable


@dataclass(frozen=True, kw_only=True)
class Room:
    """The memory of an engine on one device."""

    allowed_bytes: int
    """What the engine may take."""
    overhead_bytes: int
    """What it takes beside weights, keys and values."""

    def kv_tokens(self, shape: DecoderShape, arch: DecoderArch, workload: Workload) -> int:
        """Tokens, of all requests together, whose keys and values fit; 0 where the weights do not fit."""
        left = self.allowed_bytes - self.overhead_bytes - count(shape, arch, workload).weight_bytes
        return max(0, int(left / token_bytes(shape, arch, workload)))


@dataclass(frozen=True, kw_only=True)
class Held:
    """A model that was measured."""

    arch: DecoderArch
    """What it is."""
    kv_tokens: int
    """Tokens that the engine found room for."""
    weight_bytes: int
    """Weights on the device, as the engine holds them."""


def fit_room(shape: DecoderShape, workload: Workload, allowed_bytes: int, models: Sequence[Held]) -> Room:
    """The room that some measured models leave. Raises `BadTable` without any."""
    if not models:
        raise BadTable("the room for keys and values is told by models that were measured; there are none")
    taken = [allowed_bytes - m.weight_bytes - m.kv_tokens * token_bytes(shape, m.arch, workload) for m in models]
    return Room(allowed_bytes=allowed_bytes, overhead_bytes=round(median(taken)))


def token_bytes(shape: DecoderShape, arch: DecoderArch, workload: Workload) -> float:
    """Keys and values of one token in all layers; with windows, on average over the workload's context."""
    return count(shape, arch, workload).cache_bytes / (workload.batch * workload.context)
