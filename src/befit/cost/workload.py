"""The work a model must do: how many requests at once, how long, in which number formats.

Costs are meaningless without it: cache bytes grow with batch and context, latency with prompt and generated tokens.
"""

from dataclasses import dataclass, fields, replace

from befit.cost.formats import FORMATS, beside
from befit.errors import BadBudget


@dataclass(frozen=True, kw_only=True)
class Workload:
    """`batch` requests together, each with `prompt` tokens in and `generate` tokens out."""

    batch: int = 1
    """Requests processed together, at least 1."""
    prompt: int = 128
    """Prompt tokens of each request, at least 1."""
    generate: int = 32
    """Generated tokens of each request, at least 1."""
    weights: str = "bf16"
    """Format of the linear layers' matrices: fp32, bf16, fp16, fp8, int8 or nvfp4 (see `befit.cost.formats`)."""
    cache: str = "bf16"
    """Format of the KV cache, one of the same."""

    def __post_init__(self) -> None:
        for name in ("batch", "prompt", "generate"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BadBudget(f"workload: {name} must be a whole number of at least 1, got {value!r}")
        for name in ("weights", "cache"):
            if getattr(self, name) not in FORMATS:
                raise BadBudget(f"workload: {name} must be one of {', '.join(FORMATS)}, got {getattr(self, name)!r}")

    @property
    def context(self) -> int:
        """Tokens in the cache when a request ends."""
        return self.prompt + self.generate

    @property
    def computed(self) -> "Workload":
        """The same work in formats that PyTorch computes in: bf16 where weights or cache are quantised."""
        return replace(self, weights=beside(self.weights), cache=beside(self.cache))

    @property
    def formats(self) -> str:
        """For people: `weights fp8, cache bf16`."""
        return f"weights {self.weights}, cache {self.cache}"

    @staticmethod
    def parse(text: str, base: "Workload | None" = None) -> "Workload":
        """Read `batch=8,prompt=2048,generate=256,weights=bf16`; what is not named comes from `base`.

        Raises `BadBudget` for an unknown word, a repeated word or a value that is no whole number or format.
        """
        start, given = base or Workload(), dict[str, int | str]()
        known = [field.name for field in fields(Workload)]
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            name, separator, value = (piece.strip() for piece in part.partition("="))
            if not separator or name not in known:
                raise BadBudget(
                    f"workload: cannot read {part!r}; expected NAME=VALUE with a name of {', '.join(known)}"
                )
            if name in given:
                raise BadBudget(f"workload: {name} is given twice in {text!r}")
            if name in ("weights", "cache"):
                given[name] = value
            elif value.isdigit():
                given[name] = int(value)
            else:
                raise BadBudget(f"workload: {name} must be a whole number of at least 1, got {value!r}")
        return replace(start, **given)  # type: ignore[arg-type]
