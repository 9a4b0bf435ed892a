"""The table against the installed PyTorch."""

import ast
import importlib
import inspect

import pytest

from befit.propose.signatures import TEXT, signature


@pytest.mark.parametrize("path", TEXT)
def test_the_table_is_pytorchs(path: str) -> None:
    module, _, name = path.rpartition(".")
    real = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    said = signature(path)
    assert said is not None
    assert list(said) == list(real)[: len(said)]
    for parameter, default in said.items():
        wanted = real[parameter].default
        assert (default is None) == (wanted is inspect.Parameter.empty)
        if default is not None:
            assert repr(ast.literal_eval(default)) == repr(wanted)


def test_what_is_not_there() -> None:
    assert signature("torch.nn.Sequential") is None
