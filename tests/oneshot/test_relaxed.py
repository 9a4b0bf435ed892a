"""Settings that cannot work are refused; what was written is read back."""

import json
from dataclasses import asdict

import pytest

from befit.oneshot.relaxed import Epoch, RelaxConfig, Relaxed


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"lr": 0}, {"arch_decay": -1}, {"arch_wait": 1.0}, {"seconds": 0}], ids=str
)
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"relax: {next(iter(wrong))} must be"):
        RelaxConfig(**wrong)  # pyright: ignore[reportArgumentType]


def test_json_keeps_it() -> None:
    epoch = Epoch(probabilities={"a": (0.25, 0.75)}, entropy=0.5, weights_loss=1.0, arch_loss=2.0, costs={"macs": 3.0})
    told = Relaxed(scores={"a": (-1.0, -0.5)}, history=(epoch,), steps=7, seconds=1.5)
    assert Relaxed.from_json(json.loads(json.dumps(asdict(told)))) == told
    assert told.entropy == 0.5
