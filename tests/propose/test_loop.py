"""The loop with models from a script: refusals, repeats, silence, and runs that were stopped anywhere."""

import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from befit.errors import BefitError, RunConflict
from befit.propose import loop
from befit.propose.config import ProposeConfig
from befit.propose.diversity import similar
from befit.propose.job import ProposeJob, training_of
from befit.propose.judge import Judged
from befit.propose.lane import Lane
from befit.propose.loop import notes, propose, propose_all
from befit.propose.models import Completion, Message, Request, Scripted
from befit.propose.proposal import Proposal
from befit.propose.proposers import Fixed
from befit.propose.records import Records
from befit.propose.sandbox.box import Sandbox
from befit.propose.summary import lines
from befit.vision.data import Images, from_arrays, load_images
from befit.vision.training import TrainConfig
from chat_server import answer, serving

TIMES = ("call_seconds", "gate_seconds", "train_seconds")


@pytest.fixture(scope="module")
def images() -> Images:
    drawn = np.random.default_rng(0)
    labels = np.arange(200) % 2
    pixels = drawn.integers(0, 150, (200, 1, 8, 8))
    pixels[np.arange(200), 0, np.where(labels, 1, 6)] += 60
    return from_arrays(pixels.astype("uint8"), labels)


def net(width: int, *, end: str = "self.b(self.a(x.flatten(1)).relu())") -> str:
    """A network of this width, or one that is broken in its own way."""
    return f"""```python
from torch import nn
class Net(nn.Module):
    def __init__(self, in_shape, out_shape, prm, device):
        super().__init__()
        self.a = nn.Linear(in_shape[1] * in_shape[2] * in_shape[3], {width})
        self.b = nn.Linear({width}, out_shape[0])
    def forward(self, x):
        return {end}
```"""


def config(out: Path, **more: Any) -> ProposeConfig:
    quick = TrainConfig(epochs=2, batch=32)
    return ProposeConfig(**{"out": out, "train": quick, "final": quick, "seconds": 60, "proposals": 4, **more})


def ran(sandbox: Sandbox, images: Images, told: ProposeConfig, model: Scripted) -> list[Proposal]:
    """The rows after the loop, times left out."""
    job = ProposeJob.open(told, model=model, data=images)
    job.begin()
    propose_all(job, sandbox, sandbox)
    return rows_of(told.out)


def rows_of(out: Path) -> list[Proposal]:
    return [replace(row, **dict.fromkeys(TIMES, 0.0)) for row in Records(out / "proposals.sqlite").proposals()]


def by_number(*answers: str | Completion | list[str | Completion]) -> Callable[[Request, Any], str | Completion]:
    """Answers for each proposal, and for its second call where there are two; whoever asks twice gets the same."""
    told = [[one] if isinstance(one, str | Completion) else one for one in answers]

    def write(request: Request, _rng: Any) -> str | Completion:
        place = places[request.seed]
        return told[place[0]][place[1]]

    lane = Lane(arm=ARM, dataset="arrays", seed=0, **dict.fromkeys(LANE))  # pyright: ignore[reportArgumentType]
    places = {lane.seed_of(n, f"call {call}"): (n, call) for n in range(len(told)) for call in range(2)}
    return write


ARM = type("Arm", (), {"name": ""})()
LANE = ("images", "threshold", "task", "proposer", "space", "options")


def test_a_refused_answer_is_asked_for_once_more_with_the_reason(
    sandbox: Sandbox, images: Images, tmp_path: Path
) -> None:
    broken = net(5, end="self.a(x)")
    write = by_number(net(4), ["I have no idea.", net(5)], [broken, net(6)], [broken, broken])
    model = Scripted(write=write)
    rows = ran(sandbox, images, config(tmp_path), model)
    assert [(row.stage, row.reason, row.calls) for row in rows[:3]] == [
        *(("above-chance", "", 1), ("above-chance", "", 2), ("above-chance", "", 2))
    ]
    assert (rows[3].stage, rows[3].reason, rows[3].calls, rows[3].done) == ("new-tree", "build", 2, True)
    assert [row.params for row in rows[:3]] == [64 * w + w + 2 * w + 2 for w in (4, 5, 6)]
    first, second = model.asked[1], model.asked[2]
    assert second.messages[: len(first.messages)] == first.messages and second.seed != first.seed
    assert second.messages[-2].content == "I have no idea." and "no code found" in second.messages[-1].content
    assert "line" in model.asked[4].messages[-1].content and "[64, 5]" in model.asked[4].messages[-1].content
    assert rows[1].accuracy is not None and f"{rows[1].accuracy:.1%}" in model.asked[-1].messages[1].content
    assert (tmp_path / "networks" / "arrays-0" / "0001.py").read_text() == rows[1].source


def test_a_repeat_has_the_known_score_and_costs_no_training(
    sandbox: Sandbox, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = list[str]()

    def counted(_sandbox: Any, source: str, *_: Any, seed: int) -> Judged:
        trained.append(source)
        return Judged(accuracy=0.9 - 0.1 * seed, seconds=1.0)

    monkeypatch.setattr(loop, "judge", counted)
    renamed = net(4).replace("self.a", "self.first").replace("self.b", "self.last")
    thrice = net(4, end="self.b(self.a(x.flatten(1)).relu()) + 0 * self.a(x.flatten(1)).sum() * 0")
    model = Scripted(write=by_number(net(4), [renamed, renamed], [renamed, net(8)], thrice))
    rows = ran(sandbox, images, config(tmp_path), model)
    assert [row.same_as for row in rows[:3]] == [None, 0, None] and len(trained) == len(
        [r for r in rows if r.same_as is None]
    )
    assert (rows[1].accuracy, rows[1].stage, rows[1].reason) == (0.9, "allowed", "seen-tree")
    assert "90.0%" in model.asked[2].messages[-1].content
    assert "1 proposals computed the same as an earlier one (90.0%)" in model.asked[3].messages[1].content


def test_silence_counts_until_it_lasts(sandbox: Sandbox, images: Images, tmp_path: Path) -> None:
    """Two failures and an answer: two attempts. Three failures: the run stops, and they are made anew when it goes on."""
    gone = Completion(finish="outage", said="connection refused")
    told = config(tmp_path, proposals=7)
    before = Scripted(write=by_number(net(4), gone, gone, net(5), gone, gone, gone))
    with pytest.raises(BefitError, match=rf"3 times in a row \(connection refused\).*befit resume {tmp_path}"):
        ran(sandbox, images, told, before)
    assert [(row.stage, row.reason) for row in rows_of(tmp_path)] == [
        *(("above-chance", ""), ("attempted", "outage"), ("attempted", "outage"), ("above-chance", ""))
    ]
    after = Scripted(write=by_number(*[""] * 4, net(6), net(7), net(8)))
    rows = ran(sandbox, images, told, after)
    assert [row.stage for row in rows[4:]] == ["above-chance"] * 3 and len(after.asked) == 3
    assert rows[5].parent is not None and rows[5].examples


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, and what is not on disk is lost."""


ANSWERS = by_number(net(4), ["Hm.", net(5)], [net(4), net(6)], net(7))


def crash(monkeypatch: pytest.MonkeyPatch, where: str, when: int) -> Callable[[Request, Any], str | Completion]:
    """End the process at the `when`-th time that it comes there, before or after the work."""
    count = 0

    def dying(work: Callable[..., Any], *, after: bool = False) -> Callable[..., Any]:
        def done(*given: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count < when:
                return work(*given, **named)
            if after:
                work(*given, **named)
            raise Killed

        return done

    if where == "gate":
        monkeypatch.setattr("befit.propose.gate.Gate.check", dying(loop.Gate.check))
    elif where.startswith("training"):
        monkeypatch.setattr(loop, "judge", dying(loop.judge, after=where == "training, done"))
    elif where == "record":
        monkeypatch.setattr(Records, "write", dying(Records.write, after=True))
    return dying(ANSWERS) if where == "call" else ANSWERS


@pytest.fixture(scope="module")
def whole(sandbox: Sandbox, images: Images, tmp_path_factory: pytest.TempPathFactory) -> list[Proposal]:
    """The rows of a run that nobody stopped."""
    return ran(sandbox, images, config(tmp_path_factory.mktemp("whole")), Scripted(write=ANSWERS))


@pytest.mark.parametrize(
    ("where", "when"),
    [
        ("call", 1),
        ("call", 3),
        ("gate", 2),
        ("gate", 3),
        ("training", 1),
        ("training, done", 3),
        ("record", 1),
        ("record", 6),
    ],
)
def test_a_run_that_is_killed_anywhere_ends_as_one_that_is_not(
    where: str,
    when: int,
    sandbox: Sandbox,
    images: Images,
    whole: list[Proposal],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        model = Scripted(write=crash(patched, where, when))
        with pytest.raises(Killed):
            ran(sandbox, images, config(tmp_path / "run"), model)
    left = rows_of(tmp_path / "run")
    assert sum(not row.done for row in left) == (0 if (where, when) == ("record", 6) and left[-1].done else 1)
    again = Scripted(write=ANSWERS)
    assert ran(sandbox, images, config(tmp_path / "run"), again) == whole
    with sqlite3.connect(tmp_path / "run" / "proposals.sqlite") as connection:
        answered = connection.execute("SELECT count(*), count(DISTINCT key) FROM attempts WHERE completion IS NOT NULL")
        assert answered.fetchone() == (6, 6), "each call was answered once"
    connection.close()
    assert len(model.asked) + len(again.asked) == 6 + (where == "call"), "but for the one that was under way"
    done = [row.number for row in left if row.done]
    trained = (tmp_path / "run" / "networks" / "arrays-0").iterdir()
    assert sorted(int(one.stem) for one in trained) == [0, 1, 2, 3] and all(whole[number].done for number in done)


def test_what_was_judged_is_not_judged_again(
    sandbox: Sandbox, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran(sandbox, images, config(tmp_path, proposals=2), Scripted(write=ANSWERS))
    monkeypatch.setattr(loop, "judge", lambda *_, **__: Judged(reason="crash", said="again"))
    rows = ran(sandbox, images, config(tmp_path, proposals=3), Scripted(write=ANSWERS))
    assert [row.reason for row in rows] == ["", "", "crash"]


def test_arms_share_no_answers_and_see_only_their_own(sandbox: Sandbox, images: Images, tmp_path: Path) -> None:
    model = Scripted(write=lambda _request, rng: net(rng.choice(range(4, 40, 4))))
    told = config(tmp_path, proposals=3, arms="shots=0,2", seeds=2, retries=0)
    rows = ran(sandbox, images, told, model)
    assert [(row.arm, row.seed, row.number) for row in rows] == [
        (arm, seed, number) for arm in ("shots=0", "shots=2") for seed in (0, 1) for number in (0, 1, 2)
    ]
    assert len({one.seed for one in model.asked}) == 12
    assert all(not row.examples for row in rows if row.arm == "shots=0") and any(row.examples for row in rows)
    order = [(row.number, row.seed, row.arm) for row in sorted(rows, key=lambda row: (row.number, row.seed, row.arm))]
    assert order[:4] == [(0, 0, "shots=0"), (0, 0, "shots=2"), (0, 1, "shots=0"), (0, 1, "shots=2")]


@pytest.mark.parametrize("pick", ["diverse", "random"])
def test_genomes_and_changes_go_through_the_same_loop(
    pick: str, sandbox: Sandbox, images: Images, tmp_path: Path
) -> None:
    arch = '{"0->1": "%s", "0->2": "none", "1->2": "none", "0->3": "%s", "1->3": "skip_connect", "2->3": "none"}'
    told = config(tmp_path / "genome", form="genome", pick=pick, proposals=3, train=TrainConfig(epochs=1, batch=50))
    write = by_number(
        *(arch % ops for ops in (("nor_conv_3x3", "none"), ("none", "skip_connect"), ("none", "nor_conv_1x1")))
    )
    rows = ran(sandbox, images, told, Scripted(write=write))
    assert {row.form for row in rows} == {"genome"} and rows[0].params and "ARCH" in rows[0].source
    change = "<<<<<<< SEARCH\n        self.a = nn.Linear(in_shape[1] * in_shape[2] * in_shape[3], 4)\n=======\n"
    change += "        self.a = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))\n>>>>>>> REPLACE"
    told = config(tmp_path / "change", form="search-replace", proposals=2, retries=0)
    rows = ran(sandbox, images, told, Scripted(write=by_number(net(4), change)))
    assert [(row.form, row.parent) for row in rows] == [("network", None), ("search-replace", 0)]
    assert "nn.Sequential(nn.Flatten()" in rows[1].source


def in_lemur(folder: Path, rows: str = "old,arrays,0.99\n") -> Path:
    folder.mkdir()
    (folder / "old.py").write_text(net(7).split("\n", 1)[1].removesuffix("```"))
    (folder / "stat.csv").write_text(f"nn,dataset,accuracy\n{rows}")
    return folder


def test_networks_of_lemur_are_shown_from_the_start(sandbox: Sandbox, images: Images, tmp_path: Path) -> None:
    told = config(tmp_path / "run", proposals=2, lemur=in_lemur(tmp_path / "lemur"), form="search-replace")
    change = "<<<<<<< SEARCH\n        return self.b(\n=======\n        return 2 * self.b(\n>>>>>>> REPLACE"
    model = Scripted(write=by_number([change, net(8)], net(9)))
    rows = ran(sandbox, images, told, model)
    assert rows[0].parent == -1 and "99.0% (LEMUR's old, 1 epoch)" in model.asked[0].messages[1].content
    assert [row.accuracy is not None for row in rows] == [True, True]
    assert all(row.number >= 0 for row in rows), "they are shown, and are no results of this run"


def test_what_repeats_a_network_of_lemur_is_not_trained(
    sandbox: Sandbox, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "judge", lambda *_, **__: pytest.fail("it is known"))
    renamed = net(7).replace("self.a", "self.first")
    model = Scripted(write=by_number([renamed, renamed]))
    folder = in_lemur(tmp_path / "lemur", "old,arrays,0.99\nold,mnist,0.5\nnone,arrays,0.5\n")
    with pytest.warns(UserWarning, match="known from the start: 1; rows that were left out: dataset 1, no-code 1"):
        [row] = ran(sandbox, images, config(tmp_path / "run", proposals=1, lemur=folder), model)
    assert (row.stage, row.reason, row.same_as) == ("allowed", "seen-tree", -1)
    assert row.accuracy is None, "measured elsewhere, on other images"
    assert "this network is known already: 99.0% accuracy" in model.asked[1].messages[-1].content


@dataclass(frozen=True, kw_only=True)
class Listener(Fixed):
    """A proposer that notes what it hears."""

    told: list[tuple[int, str, str]] = field(default_factory=list[tuple[int, str, str]])

    def heard(self, number: int, prompt: Sequence[Message], answer: str, folder: Path) -> None:
        self.told.append((number, prompt[-1].content, answer))


def test_a_proposer_hears_every_answer_wherever_it_came_from(
    sandbox: Sandbox, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "judge", lambda *_, **__: Judged(accuracy=0.9))
    model = Scripted(write=ANSWERS)
    heard = list[Any]()
    for run in ("asked", "from the cache", "from the cache"):  # the last one is resumed, with nothing left to be done
        job = ProposeJob.open(config(tmp_path / run, cache=tmp_path / "cache", proposals=2), model=model, data=images)
        listener = Listener(one=model)
        job.lanes[0].proposer = listener
        job.begin()
        propose_all(job, sandbox, sandbox)
        heard.append(listener.told)
    first, second = (one.messages[-1].content for one in model.asked[:2])
    assert heard[0] == heard[1] == [(0, first, net(4)), (1, second, "Hm."), (1, second, net(5))]
    assert len(model.asked) == 3 and not heard[2]


@pytest.mark.parametrize("told", [{"ahead": 1, "proposals": 3}, {"arms": "shots=0,1", "proposals": 2}], ids=str)
def test_a_server_writes_the_next_network_while_one_trains(
    told: dict[str, Any], sandbox: Sandbox, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each training waits for the request of the next proposal; a run that is killed meanwhile ends as one that is not."""
    widths = dict[int, int]()

    def run(out: Path, training: Callable[[int, int], None]) -> list[Proposal]:
        job = ProposeJob.open(config(out, llm=seen.url, model="m", retries=0, **told), data=images)
        left, before, trained = job.open_rows, len(seen.bodies), count(1)
        widths.update({lane.seed_of(n, "call 0"): 4 + 2 * n + job.lanes.index(lane) for n, lane in left})

        def judged(*_: Any, seed: int) -> Judged:
            training(min(next(trained) + 1, len(left)), before)
            return Judged(accuracy=0.9)

        monkeypatch.setattr(loop, "judge", judged)
        job.begin()
        try:
            propose_all(job, sandbox, sandbox)
        finally:
            wait(lambda: all(one.completion is not None for one in job.attempts.rows()))
            for lane in job.lanes:
                lane.proposer.close()
        return rows_of(out)

    def asked_for_the_next(least: int, before: int) -> None:
        wait(lambda: len(seen.bodies) >= before + least)

    def killed(least: int, before: int) -> None:
        asked_for_the_next(least, before)
        raise Killed

    with serving(lambda body, _number: answer(net(widths[body["seed"]]))) as seen:
        whole = run(tmp_path / "whole", asked_for_the_next)
        with pytest.raises(Killed):
            run(tmp_path / "killed", killed)
        assert [row.done for row in rows_of(tmp_path / "killed")] == [False, False]
        asked = len(seen.bodies)
        assert run(tmp_path / "killed", lambda *_: None) == whole
        assert len(seen.bodies) == asked + len(whole) - 2, "two answers were there"
    assert all(row.stage == "above-chance" for row in whole)
    # With `ahead` the second proposal did not wait for the first; arms see their own proposals as ever.
    assert [row.parent for row in whole] == ([None, None, 0] if "ahead" in told else [None, 0, None, 0])


def wait(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_whole_run_leaves_the_best(images: Images, tmp_path: Path) -> None:
    refused = list[str]()

    def write(*asked: Any) -> str | Completion:
        with pytest.raises(RunConflict) as caught:  # the run is under way
            propose(config(tmp_path, proposals=1), model=Scripted(write=ANSWERS), data=images)
        refused.append(str(caught.value))
        return ANSWERS(*asked)

    summary = propose(config(tmp_path, proposals=2), model=Scripted(write=write), data=images)
    assert all("another process is at work" in told for told in refused) and refused
    assert summary["kind"] == "proposals" and summary["arms"][0]["funnel"]["trained"] == 2
    best = summary["best"][0]
    assert {one.name for one in (tmp_path / "best").iterdir()} == {
        "net.py",
        "model.safetensors",
        "card.json",
        "README.md",
    }
    assert best["test"] > 0.8 and (tmp_path / "report.html").exists()
    again = propose(config(tmp_path, proposals=2), model=Scripted(write=ANSWERS), data=images)
    assert again["best"] == summary["best"]
    stages = [{name: told[name] for name in ("name", "reused")} for run in (summary, again) for told in run["stages"]]
    assert stages == [{"name": n, "reused": r} for r in (False, True) for n in ("data", "proposals", "best")]
    assert all(stage["seconds"] > 0 for stage in (summary["stages"][1], again["stages"][1]))


@pytest.mark.parametrize(
    ("told", "gpu", "expected"),
    [
        ({}, False, "cpu"),
        ({}, True, "cpu"),  # digits are done before CUDA is ready
        ({"train": TrainConfig(epochs=1000)}, True, "cuda"),
        ({"train": TrainConfig(seconds=60)}, True, "cuda"),
        ({"device": "cuda"}, True, "cuda"),
        ({"device": "cpu", "train": TrainConfig(epochs=1000)}, True, "cpu"),
    ],
)
def test_networks_are_trained_on_a_gpu_where_that_pays(
    told: dict[str, Any], gpu: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert training_of(ProposeConfig(**told), [load_images("digits")]).device == expected


def test_a_folder_of_another_run_is_refused(sandbox: Sandbox, images: Images, tmp_path: Path) -> None:
    ran(sandbox, images, config(tmp_path, proposals=1), Scripted(write=ANSWERS))
    with pytest.raises(RunConflict, match="shots was 3, now 2"):
        ProposeJob.open(config(tmp_path, shots=2), data=images)
    other = replace(images, train=images.train.take(images.train.labels.argsort()))
    with pytest.raises(RunConflict, match="the images of arrays are not those"):
        ProposeJob.open(config(tmp_path, proposals=1), data=other).begin()


def test_notes_say_the_most_useful_first() -> None:
    row = Proposal(arm="", dataset="d", seed=0, number=0, done=True)
    rows = [
        replace(row, stage="above-chance", accuracy=0.5),
        replace(row, stage="above-chance", accuracy=0.7),
        replace(row, stage="allowed", reason="seen-tree", same_as=1, accuracy=0.7),
        replace(row, stage="returned", reason="no-code", said="no code found"),
        *[replace(row, stage="built", reason="budget", said=f"{n} M parameters") for n in (3, 2)],
        replace(row, reason="outage", said="connection refused"),
    ]
    assert notes(rows) == [
        "2 networks were trained: the best has 70.0%, the median 60.0%.",
        "1 proposals computed the same as an earlier one (70.0%): other names or another layout do not make a network new.",
        "2 failed by budget, the last one so: 2 M parameters",
        "1 failed by no-code, the last one so: no code found",
    ]
    assert notes([]) == []


def test_similar_reads_networks_and_genomes() -> None:
    def scored(text: str) -> Any:
        return type("Scored", (), {"text": text})()

    one = net(4).split("\n", 1)[1].removesuffix("```")
    assert (
        similar(scored(one), scored(one.replace("self.a", "self.c")))
        == 1.0
        > similar(scored(one), scored(one.replace(".relu()", "")))
    )
    assert similar(scored("{\n1\n}"), scored("{\n2\n}")) == 0.5


def test_the_terminal_says_why_proposals_were_lost() -> None:
    told = {"best": [], "run": "r", "lost": [{"reason": name, "count": 2, "said": "so " * 99} for name in "abcd"]}
    none, *lost, report = lines(told)
    assert "none" in none and report.startswith("report")
    assert len(lost) == 3 and lost[0].startswith("lost    2 a: so so") and lost[1].startswith("        2 b: so so")
    assert max(len(line) for line in lost) <= 108
