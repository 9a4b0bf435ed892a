"""Slices from files against slices of tensors, and shards as transformers reads them."""

import json
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests import members

from befit.errors import RunConflict
from befit.lm.checkpoint import INDEX, Checkpoint, write_shards
from befit.lm.prefix import plan, take


def same(name: str) -> str:
    return name


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.randoms(use_true_random=False))
def test_what_is_read_is_what_a_member_keeps(draw: Random, tmp_path: Path) -> None:
    parent = members.parent_of(members.any_config(draw))
    member = members.member_of(draw, parent.net.shape)
    save_file(parent.weights, tmp_path / "all.safetensors")
    kept = 0
    with Checkpoint(tmp_path, ["all.safetensors"], same) as weights:
        for name, dimensions in plan(parent.net.shape, parent.net.family, member).values():
            part = weights.read(name, dimensions)
            assert torch.equal(part, take(parent.weights[name], dimensions))
            kept += part.nbytes
        assert kept <= weights.bytes_read <= sum(tensor.nbytes for tensor in parent.weights.values())


def test_a_file_that_is_not_what_it_should_be(tmp_path: Path) -> None:
    parent = members.parent_of(members.hybrid_config(Random(0)))
    kept = plan(parent.net.shape, parent.net.family, members.member_of(Random(0), parent.net.shape))
    name, dimensions = next(iter(kept.values()))
    save_file({"else": torch.zeros(1), name: torch.zeros(3, 3)}, tmp_path / "a.safetensors")
    with Checkpoint(tmp_path, ["a.safetensors"], same) as weights:
        assert weights.stored_name("else") == "else" and torch.equal(weights.whole("else"), torch.zeros(1))
        with pytest.raises(RunConflict, match="the shape"):
            weights.read(name, dimensions)
        with pytest.raises(RunConflict, match="no tensor absent"):
            weights.whole("absent")
    (tmp_path / "b.safetensors").write_bytes(b"none")
    with pytest.raises(RunConflict, match="cannot be read"):
        Checkpoint(tmp_path, ["a.safetensors", "b.safetensors"], same)


@pytest.mark.parametrize(("limit", "files"), [(1000, 1), (100, 2), (40, 3)])
def test_shards(limit: int, files: int, tmp_path: Path) -> None:
    tensors = {"a": torch.ones(10), "b": torch.ones(8) * 2, "c": torch.ones(20) * 3}
    planned = {name: tensor.nbytes for name, tensor in tensors.items()}
    write_shards(tmp_path, iter(tensors.items()), planned, limit)
    written = sorted(tmp_path.glob("*.safetensors"))
    assert len(written) == files
    found = {name: tensor for file in written for name, tensor in load_file(file).items()}
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    if files > 1:
        told = json.loads((tmp_path / INDEX).read_text())
        assert told["metadata"]["total_size"] == 152
        assert all(name in load_file(tmp_path / file) for name, file in told["weight_map"].items())
    else:
        assert written[0].name == "model.safetensors"
