"""A network spread over two processes trains as a whole one does, and gives its state back whole."""

import json
from pathlib import Path

import pytest
import torch
from tests.teams import spoken
from torch import nn

from befit.lm.training import adam, restore, training_state
from befit.rundir import read_tensors

NETWORK = """
import json, sys
from pathlib import Path
import torch
from torch import nn
from befit.lm.shard import gathered, shard, spread
from befit.lm.team import Team
from befit.lm.training import adam, restore, training_state
from befit.rundir import read_tensors, write_tensors

def network():
    torch.manual_seed(0)
    layers = [nn.Linear(5, 7), nn.Identity(), nn.Linear(7, 3)]  # no size is a multiple of two, one has nothing to spread
    return nn.Sequential(*layers)

def step(root, optimizer, rows):
    loss = root(rows).square().mean()
    loss.backward()
    nn.utils.clip_grad_norm_(root.parameters(), 0.1)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()

def data(number):
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(number))
"""
TEAM = (
    NETWORK
    + """
out = Path(json.loads(sys.argv[1]))
team = Team.of("cpu")
root = network()
shard(root, list(root), size=team.size, device=torch.device("cpu"))
weights = dict(root.named_parameters())
optimizer = adam(weights, lr=0.1)
losses = []
for number in range(3):
    losses.append(team.mean(step(root, optimizer, data(number)[team.rank :: team.size])).item())
state = training_state(weights, optimizer, gathered=gathered)
for weight in root.parameters():
    weight.detach().zero_()
restore(state, weights, optimizer, 3, spread=spread)
losses.append(team.mean(step(root, optimizer, data(3)[team.rank :: team.size])).item())
parts = sum(weight.to_local().numel() for weight in root.parameters())
whole = training_state(weights, optimizer, gathered=gathered)
if team.main:
    write_tensors(out, whole)
team.agreed(True)
print(json.dumps([losses, parts, [team.agreed(team.main), team.agreed(not team.main)]]))
"""
)


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    told = [json.loads(out) for out, _ in spoken(TEAM, str(tmp_path / "state.safetensors"))]
    alone: dict[str, object] = {}
    exec(NETWORK, alone)
    network, step, data = (alone[name] for name in ("network", "step", "data"))
    root = network()  # type: ignore[operator]
    weights = dict(root.named_parameters())
    optimizer = adam(weights, lr=0.1)
    losses = [step(root, optimizer, data(number)).item() for number in range(4)]  # type: ignore[operator]
    assert told[0][0] == told[1][0] == pytest.approx(losses, rel=1e-5)
    assert [one[1] for one in told] == [4 * 5 + 4 + 2 * 7 + 2, 3 * 5 + 3 + 1 * 7 + 1]  # rows of 7 and of 3, in two
    assert [one[2] for one in told] == [[True, False]] * 2
    expected, found = training_state(weights, optimizer), read_tensors(tmp_path / "state.safetensors")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor.detach(), rtol=1e-4, atol=1e-6)


def test_alone_a_state_goes_there_and_back() -> None:
    torch.manual_seed(0)
    weights = {name: p for name, p in nn.Linear(3, 2).named_parameters()}
    optimizer = adam(weights, lr=0.1)
    sum(p.sum() for p in weights.values()).backward()  # type: ignore[union-attr]
    optimizer.step()
    state = {name: tensor.detach().clone() for name, tensor in training_state(weights, optimizer).items()}
    for weight in weights.values():
        weight.detach().zero_()
    restore(state, weights, optimizer, 1)
    assert all(torch.equal(weights[name], state[f"weight {name}"]) for name in weights)
