"""Devices by name or by figures."""

import pytest

from befit.cost.named_devices import DEVICES, named_device
from befit.errors import BefitError


def test_a_name_in_any_case() -> None:
    assert named_device("H200") is DEVICES["h200"]
    assert all(device.flops_per_s > 1e14 and device.memory_bytes > 2e10 for device in DEVICES.values())


def test_figures() -> None:
    given = named_device("1307.5 TFLOPS, 192GB")
    assert given.flops_per_s == pytest.approx(1307.5e12) and given.memory_bytes == 192e9


@pytest.mark.parametrize("text", ["gpu", "400", "0TFLOPS,80GB", "400TFLOPS,0GB", "-1TFLOPS,80GB", ""])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(BefitError, match="400TFLOPS,80GB"):
        named_device(text)
