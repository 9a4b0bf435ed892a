"""The contract that a prompt shows is the one that the evaluator calls by."""

import ast
import inspect

import pytest

from befit.errors import BadProposal
from befit.propose import contract
from befit.propose.contract import Contract, contract_text, parse


@pytest.mark.parametrize("recipe", [False, True])
def test_the_text_has_the_signatures_and_is_python(recipe: bool) -> None:
    tree = parse(contract_text(recipe=recipe))
    net = next(node for node in tree.body if isinstance(node, ast.ClassDef))
    told = {one.name: [arg.arg for arg in one.args.args] for one in net.body if isinstance(one, ast.FunctionDef)}
    names = contract.NETWORK_METHODS + (contract.RECIPE_METHODS if recipe else ())
    assert told == {name: list(inspect.signature(vars(Contract)[name]).parameters) for name in names}
    assert told["__init__"] == ["self", "in_shape", "out_shape", "prm", "device"]
    assert (contract.HYPERPARAMETERS in contract_text(recipe=recipe)) == recipe


def test_the_text_says_what_the_shapes_are() -> None:
    text = contract_text(recipe=True)
    assert "(N, C, H, W)" in text and "(classes,)" in text and "'lr'" in text
    assert all(line.strip() in text for line in (inspect.getdoc(Contract.learn) or "").splitlines())


def test_reasons() -> None:
    for source, reason in (("def", "parse"), ("class Nets: ...", "contract")):
        with pytest.raises(BadProposal) as caught:
            parse(source)
        assert caught.value.reason == reason
