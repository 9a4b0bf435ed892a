"""A target's JSON form."""

import pytest

from befit.cost.target import Target
from befit.errors import BadTable


def test_a_target_is_told_as_json() -> None:
    target = Target(engine="onnx", batch=4, threads=2)
    assert Target.from_json(target.to_json()) == target
    assert Target.from_json(Target().to_json()) == Target()
    for wrong in ({"threads": True}, {"batch": "4"}, {"batch": None}, {"cores": 3}):
        with pytest.raises(BadTable):
            Target.from_json(target.to_json() | wrong)
    with pytest.raises(BadTable, match="expected the keys"):
        Target.from_json({"engine": "torch"})
