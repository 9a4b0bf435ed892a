"""Where an image network is to run: what its latency depends on beside the network itself."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from befit.errors import BadTable, BefitError

ENGINES = ("torch", "onnx")
"""PyTorch as it runs a module without compiling it; ONNX Runtime."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """How a network is run when its latency is measured, and when it is used."""

    engine: Literal["torch", "onnx"] = "torch"
    """What runs it; see `ENGINES`."""
    device: Literal["cpu", "cuda"] = "cpu"
    """What it runs on."""
    batch: int = 1
    """Images in one call."""
    threads: int | None = None
    """CPU threads inside one operation; None: as many as torch is set to."""

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise BefitError(f"target: engine must be one of {', '.join(ENGINES)}, got {self.engine!r}")
        if self.device not in ("cpu", "cuda"):
            raise BefitError(f"target: device must be cpu or cuda, got {self.device!r}")
        for name, told in (("batch", self.batch), ("threads", 1 if self.threads is None else self.threads)):
            if told < 1:
                raise BefitError(f"target: {name} must be at least 1, got {told}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Target":
        """Read what `to_json` wrote. Raises `BadTable` for an unknown or missing key, `BefitError` for a wrong value."""
        names = [field.name for field in fields(Target)]
        if sorted(data) != sorted(names):
            raise BadTable(f"target: expected the keys {', '.join(names)}, got {', '.join(map(str, data))}")
        for name in ("batch", "threads"):
            if type(data[name]) is not int and not (name == "threads" and data[name] is None):
                raise BadTable(f"target: {name} must be a whole number, got {data[name]!r}")
        return Target(**data)
