"""What an image network costs, exactly: parameters, multiply-adds, memory.

Source of the conventions: a multiply-add (MAC) is counted for convolutions and linear layers, as papers on mobile networks do;
normalisation, activation and pooling count nothing.
"""

from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Costs of one network for one image."""

    params: int
    """Trainable numbers; running statistics of norms are not among them."""
    macs: int
    """Multiply-adds of all convolutions and linear layers."""
    memory_bytes: int
    """In fp32: parameters and buffers, and the most that activations hold at once."""

    def costs(self) -> dict[str, float]:
        """By the names that budgets use."""
        return {name: float(value) for name, value in asdict(self).items()}
