"""Devices by name, to plan for a machine that is not this one: what their makers say of them.

Sources: the data sheets of NVIDIA's A100, H100, H200, B200, L40S and RTX 4090, rates of bf16 matrix products without sparsity.
"""

import re
from dataclasses import dataclass

from befit.errors import BefitError


@dataclass(frozen=True, kw_only=True)
class NamedDevice:
    """A GPU as its maker describes it."""

    name: str
    flops_per_s: float
    """Of bf16 matrix products, without sparsity."""
    memory_bytes: float


DEVICES = {
    "a100": NamedDevice(name="NVIDIA A100 80 GB", flops_per_s=312e12, memory_bytes=80e9),
    "h100": NamedDevice(name="NVIDIA H100 SXM", flops_per_s=989e12, memory_bytes=80e9),
    "h200": NamedDevice(name="NVIDIA H200 SXM", flops_per_s=989e12, memory_bytes=141e9),
    "b200": NamedDevice(name="NVIDIA B200", flops_per_s=2250e12, memory_bytes=180e9),
    "l40s": NamedDevice(name="NVIDIA L40S", flops_per_s=362e12, memory_bytes=48e9),
    "rtx4090": NamedDevice(name="NVIDIA RTX 4090", flops_per_s=165e12, memory_bytes=24e9),
}

_GIVEN = re.compile(r"(?P<tflops>\d+(\.\d+)?) *tflops *, *(?P<memory>\d+(\.\d+)?) *gb", re.IGNORECASE)


def named_device(text: str) -> NamedDevice:
    """A device of `DEVICES`, or one given as `400TFLOPS,80GB`. Raises `BefitError` for anything else."""
    if text.lower() in DEVICES:
        return DEVICES[text.lower()]
    given = _GIVEN.fullmatch(text.strip())
    if given is None or float(given["tflops"]) <= 0 or float(given["memory"]) <= 0:
        raise BefitError(
            f"device {text!r} is not known; expected one of {', '.join(DEVICES)}, or its rate of bf16 matrix products and its "
            "memory as 400TFLOPS,80GB"
        )
    rate, memory = float(given["tflops"]), float(given["memory"])
    return NamedDevice(name=f"a device of {rate:g} TFLOP/s", flops_per_s=rate * 1e12, memory_bytes=memory * 1e9)
