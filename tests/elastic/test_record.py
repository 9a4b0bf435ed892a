"""The record of a training: through JSON and back, and into TensorBoard where that is installed."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from befit.arch.member import Member
from befit.elastic.curriculum import ElasticTraining
from befit.elastic.record import Chosen, Log, Loss, Record, Routed, trained_from
from befit.errors import BefitError

MEMBER = Member(
    hidden=8, ffn=(4, 6), kv_heads=1, heads_per_kv=2, mamba_heads=0, mamba_head_dim=0, state=0, layers=(0, 2)
)


def record() -> Record:
    made = Record()
    made.add(0, [1.0, 0.5], torch.tensor([0.125, 1.0]))
    made.add(1, [0.5], torch.tensor([0.1]))
    made.routed.append(Routed(step=1, share=0.5, kl=1 / 3, cost=1.1))
    made.history.append(Chosen(step=0, share=0.5, member=MEMBER))
    made.seconds = 2.5
    made.flush(ElasticTraining())
    return made


def test_it_survives_json_bit_by_bit() -> None:
    told = json.loads(json.dumps(record().to_json()))
    found = trained_from({"steps": 2, "tokens": 64, **told})
    third = torch.tensor(0.1).item()
    assert found.losses == (
        Loss(step=0, share=1.0, kl=0.125),
        Loss(step=0, share=0.5, kl=1.0),
        Loss(step=1, share=0.5, kl=third),
    )
    assert found.curve(0.5) == [(0, 1.0), (1, third)]
    assert found.routed == (Routed(step=1, share=0.5, kl=1 / 3, cost=1.1),)
    assert found.history == (Chosen(step=0, share=0.5, member=MEMBER),)
    assert (found.steps, found.tokens, found.seconds) == (2, 64, 2.5)


def test_what_is_no_number_is_refused_when_it_is_looked_at() -> None:
    made = Record()
    made.add(7, [1.0, 0.75], torch.tensor([0.1, float("inf")]))
    with pytest.raises(BefitError, match=r"budget 75% in step 7 of \d+ is no number; .* than 0\.001"):
        made.flush(ElasticTraining())


class Writer:
    """TensorBoard's writer, as far as it is used."""

    made: ClassVar[list["Writer"]] = []

    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder, self.purge_step, self.closed = folder, purge_step, False
        self.scalars: list[tuple[str, float, int]] = []
        self.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def close(self) -> None:
        self.closed = True


def test_each_loss_is_logged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "tensorboard")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))  # type: ignore[arg-type]
    made = record()
    log = Log(tmp_path, 2, made)
    for step in (2, 3):
        made.add(step, [0.5], torch.tensor([0.25]))
        made.flush(ElasticTraining())
        log.write()
    made.routed.append(Routed(step=3, share=0.5, kl=0.5, cost=1.25))
    log.close()
    (writer,) = Writer.made
    assert (writer.folder, writer.purge_step, writer.closed) == (str(tmp_path), 2, True)
    assert writer.scalars == [
        ("kl/0.5", 0.25, 2),
        ("kl/0.5", 0.25, 3),
        ("router/kl/0.5", 0.5, 3),
        ("router/cost/0.5", 1.25, 3),
    ]


def test_nothing_is_logged_without_tensorboard_or_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Log(None, 0, record()).close()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    log = Log(tmp_path / "logs", 0, record())
    log.write()
    log.close()
    assert not list(tmp_path.iterdir())
