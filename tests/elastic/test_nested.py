"""A nested model and its checkpoint: what is written is an ordinary model, what is read is what was written."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import members
from tests.elastic.nesteds import WORKLOAD, nested_of, tokenizer
from transformers import AutoModelForCausalLM

import tiny
from befit.arch.member import cut_shape
from befit.arch.member import nested as is_nested
from befit.cost.count import count
from befit.elastic.nested import ROUTER, hash_of, memory_name, open_nested, read_folder, write_nested
from befit.errors import BadBudget, Infeasible, RunConflict
from befit.lm.network import logits


@pytest.mark.parametrize("family", ["nemotron_h", "llama", "qwen3"])
@torch.no_grad()
def test_members_land_on_their_budget_and_lie_inside_the_whole(family: str) -> None:
    nested = nested_of(family)
    for share in (0.75, 0.6, 0.5):
        member = nested.member(share)
        shape = cut_shape(nested.net.shape, member)
        cost = count(shape, shape.arch, WORKLOAD).params
        whole = count(nested.net.shape, nested.net.shape.arch, WORKLOAD).params
        assert 0.99 * share * whole <= cost <= share * whole
        assert nested.counted(member).params == cost
        assert is_nested(member, nested.member(1.0))
    assert nested.member(1.0) == nested.space.whole


def test_a_member_follows_the_router_as_it_learns() -> None:
    nested = nested_of()
    before = nested.member(0.5)
    assert nested.member(0.5) is before
    with torch.no_grad():
        for parameter in nested.router.parameters():
            parameter.mul_(-3.0)
    assert nested.member(0.5) != before


def test_a_member_written_down_is_the_one_that_counts() -> None:
    nested = nested_of()
    fixed = nested.space.smallest
    assert replace(nested, chosen={0.5: fixed}).member(0.5) == fixed


def test_a_share_below_the_smallest_member_is_refused() -> None:
    with pytest.raises(Infeasible):
        nested_of().member(0.01)


@pytest.mark.parametrize("gains", [False, True])
@torch.no_grad()
def test_the_folder_is_an_ordinary_checkpoint_and_reads_back(gains: bool, tmp_path: Path) -> None:
    nested = nested_of(gains=gains)
    manifest = write_nested(tmp_path / "nested", nested, tokenizer())
    plain: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "nested")
    tokens = tiny.tokens(2, 9)
    assert members.difference(plain(tokens).logits, logits(nested.net, nested.weights, tokens)) < 1e-5
    again = open_nested(tmp_path / "nested", weights=True)
    assert set(again.weights) == set(nested.weights)
    assert all(torch.equal(again.weights[name], tensor) for name, tensor in nested.weights.items())
    assert (again.space, again.targets, again.workload) == (nested.space, nested.targets, nested.workload)
    assert again.net.shape == nested.net.shape
    for share in (1.0, 0.75, 0.6, 0.5):
        assert again.member(share) == nested.member(share)
        ours, theirs = nested.member_weights(share), again.member_weights(share)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not open_nested(tmp_path / "nested").weights
    assert read_folder(tmp_path / "nested")[1] == manifest
    router = sum(file.stat().st_size for file in (tmp_path / "nested").glob("router*"))
    assert router == manifest.files[ROUTER].bytes


def test_gains_change_the_members_and_not_the_whole() -> None:
    plain, tuned = nested_of(), nested_of(gains=True)
    name = "model.norm_f.weight"
    assert torch.equal(plain.member_weights(1.0)[name], tuned.member_weights(1.0)[name])
    assert not torch.equal(plain.member_weights(0.5)[name], tuned.member_weights(0.5)[name])


@torch.no_grad()
def test_the_hash_tells_every_tensor_and_every_size_apart() -> None:
    nested = nested_of()
    own, shape = nested.member_weights(0.5), cut_shape(nested.net.shape, nested.member(0.5))
    first = hash_of(own, shape)
    assert hash_of(dict(reversed(own.items())), shape) == first
    assert hash_of(own, replace(shape, head_dim=4)) != first
    for name, tensor in own.items():
        changed = tensor.clone()
        changed.view(-1)[-1] += 1
        assert hash_of(own | {name: changed}, shape) != first
    assert hash_of({name: tensor.double() for name, tensor in own.items()}, shape) != first


def test_a_parent_that_is_written_in_halves_stays_in_halves(tmp_path: Path) -> None:
    nested = nested_of("llama")
    half = replace(nested, weights={name: tensor.bfloat16() for name, tensor in nested.weights.items()})
    write_nested(tmp_path / "nested", half)
    assert json.loads((tmp_path / "nested" / "config.json").read_text())["dtype"] == "bfloat16"
    assert {tensor.dtype for tensor in open_nested(tmp_path / "nested", weights=True).weights.values()} == {
        torch.bfloat16
    }


def test_another_familys_manifest_is_refused(tmp_path: Path) -> None:
    write_nested(tmp_path / "nested", nested_of())
    path = tmp_path / "nested" / "nested.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"family": "llama"}))
    with pytest.raises(RunConflict, match="the manifest is of a llama"):
        open_nested(tmp_path / "nested")


def test_a_router_of_another_size_is_refused(tmp_path: Path) -> None:
    write_nested(tmp_path / "nested", nested_of())
    path = tmp_path / "nested" / "nested.json"
    told = json.loads(path.read_text())
    told["router"]["width"] = 9
    path.write_text(json.dumps(told))
    with pytest.raises(RunConflict, match="does not fit its manifest"):
        open_nested(tmp_path / "nested")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunConflict, match=r"no config\.json"):
        open_nested(tmp_path)


def test_latency_is_not_guessed(tmp_path: Path) -> None:
    nested = nested_of(budgets="latency=100%, latency=50%", price=lambda member: member.hidden * member.depth / 10)
    write_nested(tmp_path / "nested", nested)
    again = open_nested(tmp_path / "nested")
    assert again.member(0.5) == nested.member(0.5)
    with pytest.raises(BadBudget, match="trained for latency"):
        again.member(0.6)


def test_names_of_files_and_of_memory() -> None:
    assert memory_name("backbone.layers.0.norm.weight") == "model.layers.0.norm.weight"
    assert memory_name("model.norm.weight") == "model.norm.weight"
    assert memory_name("lm_head.weight") == "lm_head.weight"
