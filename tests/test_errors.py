"""The hierarchy is as drawn, user errors are one family, and `Infeasible` survives a trip to another process."""

import inspect
import pickle
import re

import pytest

from befit import errors
from befit.errors import BefitError, Infeasible

CLASSES = {name: cls for name, cls in vars(errors).items() if inspect.isclass(cls) and issubclass(cls, Exception)}


def test_the_drawing_shows_every_error_and_what_else_it_is() -> None:
    drawn = re.findall(r"[├└]── (\w+) +(.*)", errors.__doc__ or "")
    assert {name for name, _ in drawn} == CLASSES.keys() - {"BefitError"}
    for name, text in drawn:
        assert issubclass(CLASSES[name], BefitError)
        assert issubclass(CLASSES[name], ValueError) == ("(also ValueError)" in text), name


def test_infeasible_survives_pickling() -> None:
    error = Infeasible("no choice", binding="params", nearest={"params": 3.0})
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.binding, again.nearest) == (
        Infeasible,
        "no choice",
        "params",
        {"params": 3.0},
    )


@pytest.mark.parametrize(
    "cls", [cls for cls in CLASSES.values() if cls is not Infeasible], ids=lambda cls: cls.__name__
)
def test_other_errors_survive_pickling(cls: type[Exception]) -> None:
    again = pickle.loads(pickle.dumps(cls("what was given, what was expected")))
    assert type(again) is cls and str(again) == "what was given, what was expected"
