"""Proposers: the grammar draws by the request's seed within the budget; servers that are not there are said to be so."""

import random
from pathlib import Path

import pytest
import torch

from befit.arch.task import ImageTask
from befit.budget import Budget
from befit.errors import BefitError, IllegalArch, UnsupportedModel
from befit.propose.answer import read
from befit.propose.config import ProposeConfig
from befit.propose.genome import arch_in, network, write
from befit.propose.models import Message, Request
from befit.propose.network import Maker
from befit.propose.proposers import Grammar, bounds_for, proposer_of, reach
from befit.vision.checkpoint import blueprint_of
from chat_server import answer, error, free_port, serving
from tiny_chat import save_tiny_chat

TASK = ImageTask(channels=1, height=8, width=8, classes=10)
META = torch.device("meta")
ASK = (Message(role="user", content="a net"),)


def ask(seed: int) -> Request:
    return Request(messages=ASK, seed=seed)


def test_the_grammar_draws_by_the_seed_and_within_the_budget() -> None:
    model = Grammar(bounds_for(TASK, Budget.parse("params<=3K, macs<=1M")))
    texts = [model.complete(ask(seed)).text for seed in range(12)]
    assert texts == [
        Grammar(bounds_for(TASK, Budget.parse("params<=3K"))).complete(ask(seed)).text for seed in range(12)
    ]
    assert len(set(texts)) > 8
    for text in texts:
        source = read(model.complete(ask(texts.index(text))), "network").source
        net = Maker(source, {"in_shape": (2, 1, 8, 8), "out_shape": (10,), "prm": {"dropout": 0.1}})(META)
        assert sum(weight.numel() for weight in net.parameters()) <= 3000
    told = model.complete(ask(0))
    assert (told.prompt_tokens, told.completion_tokens, told.price) == (0, 0, 0.0)
    assert Grammar(bounds_for(TASK, None)).name != model.name


def test_a_budget_that_leaves_nothing_is_said_at_the_start() -> None:
    with pytest.raises(IllegalArch, match="no network of at most 10 parameters"):
        Grammar(bounds_for(TASK, Budget.parse("params<=10")))


@pytest.mark.parametrize(("name", "options"), [("cell", {"cells": 1}), ("mobile", {"skeletons": ("compact",)})])
def test_the_grammar_draws_genomes_that_become_files(name: str, options: dict[str, object]) -> None:
    blueprint = blueprint_of(name, options)
    model = Grammar(bounds_for(TASK, None), blueprint.space)
    keys = set[str]()
    for seed in range(3):
        arch = read(model.complete(ask(seed)), "genome", space=blueprint.space).arch
        assert arch is not None and arch == blueprint.space.sample(random.Random(seed))
        source = write(name, options, arch)
        assert blueprint.space.arch(arch_in(source)) == arch
        net = Maker(source, {"in_shape": (2, 1, 32, 32), "out_shape": (10,), "prm": {}})(META)
        alone = network(name, options, arch, (2, 1, 32, 32), (10,))
        assert [one.shape for one in net.parameters()] == [one.shape for one in alone.parameters()]
        keys.add(source)
    assert len(keys) == 3


def test_a_server_is_asked_once_before_a_run() -> None:
    with serving(lambda body, number: answer("OK")) as server:
        reach(ProposeConfig(llm=server.url, model="m"))
        assert len(server.bodies) == 1 and server.bodies[0]["max_tokens"] == 16
    with (
        serving(lambda body, number: error(404, "there is no model m")) as server,
        pytest.raises(BefitError, match=r"does not answer \(HTTP 404.*correct --llm.*--model"),
    ):
        reach(ProposeConfig(llm=server.url, model="m"))
    with pytest.raises(BefitError, match=r"does not answer .*start the server"):
        reach(ProposeConfig(llm=f"http://127.0.0.1:{free_port()}/v1", model="m"))
    with pytest.raises(BefitError, match="--model NAME"):
        reach(ProposeConfig(llm="http://127.0.0.1:1/v1"))
    reach(ProposeConfig())


def test_local_weights_propose(tmp_path: Path) -> None:
    told = ProposeConfig(llm=f"hf:{save_tiny_chat(tmp_path / 'tiny')}")
    proposer = proposer_of(told, TASK, None, 0)
    assert proposer.count("abc") == 3 and proposer.model(0, [], tmp_path) is proposer.model(5, [], tmp_path)
    assert proposer is proposer_of(told, TASK, None, 1), "loaded once"
    with pytest.raises(UnsupportedModel, match=f"no folder '{tmp_path}/nowhere'"):
        proposer_of(ProposeConfig(llm=f"hf:{tmp_path}/nowhere"), TASK, None, 0)
    with pytest.raises(UnsupportedModel, match="no causal language model"):
        proposer_of(ProposeConfig(llm=f"hf:{tmp_path}"), TASK, None, 0)


def test_learning_proposers_are_made_for_each_lane(tmp_path: Path) -> None:
    learning = proposer_of(ProposeConfig(llm="learn"), TASK, None, 0)
    made = learning.model(0, [], tmp_path)
    texts = {made.complete(ask(seed)).text for seed in range(4)}
    assert len(texts) == 4 and all("class Net" in text for text in texts)
    told = ProposeConfig(llm=f"lora:{save_tiny_chat(tmp_path / 'tiny')}")
    one, other = (proposer_of(told, TASK, None, seed) for seed in (0, 1))
    assert one is not other and one.model(0, [], tmp_path / "one").complete(ask(0)).answered
    one.close()
