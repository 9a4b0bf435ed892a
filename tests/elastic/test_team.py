"""Several processes make one nested model: the same as one makes, told once; an error ends them all."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.elastic.test_pipeline import command
from transformers import AutoModelForCausalLM

from befit.cli import main
from befit.elastic.team import Team
from befit.rundir import read_json

Ended = tuple[int, str, str]
"""Exit code, stdout, stderr."""


def together(arguments: list[str], size: int = 2) -> list[Ended]:
    """`befit` in `size` processes of one team, the main one first, without a launcher that would end the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
    team = [
        subprocess.Popen(
            [sys.executable, "-m", "befit", *arguments],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        told = [one.communicate(timeout=100) for one in team]
    finally:
        for one in team:
            one.kill()
    return [(one.returncode, *said) for one, said in zip(team, told, strict=True)]


def test_two_processes_make_what_one_makes(tmp_path: Path) -> None:
    alone, team = tmp_path / "alone", tmp_path / "team"
    assert main(command(tmp_path, alone)) == 0
    (code, out, _), other = together(command(tmp_path, team))
    assert code == 0 and "report.html" in out
    assert other == (0, "", "")
    one, two = read_json(alone / "summary.json"), read_json(team / "summary.json")
    assert not any(stage["reused"] for stage in two["stages"])
    assert [row["member"] for row in two["members"]] == [row["member"] for row in one["members"]]
    for name in ("kl", "kl_untrained", "loss"):
        assert [row[name] for row in two["members"]] == pytest.approx([row[name] for row in one["members"]], abs=1e-3)
    assert two["training"]["tokens"] == one["training"]["tokens"]
    assert main(["cut", str(team), "--budget=50%", f"--out={tmp_path / 'cut'}"]) == 0
    smallest = next(row for row in two["members"] if row["budget"] == 0.5)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "cut").num_parameters() == smallest["params"]
    # One that knows the run goes on alone, and a team with what one began.
    assert main(command(tmp_path, team)) == 0
    assert all(stage["reused"] for stage in read_json(team / "summary.json")["stages"])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--budgets=100%, 5%",), "the smallest has"),  # met by the main process first
        (("--train.micro-batches=4",), "4 micro-batches of 2 processes"),
        (("--train.lr=1e30",), "diverged"),  # met by both, in training
    ],
)
def test_an_error_is_told_once_and_ends_both(more: tuple[str, ...], words: str, tmp_path: Path) -> None:
    (code, _, told), other = together([*command(tmp_path, tmp_path / "run"), *more])
    assert code == 2 and words in " ".join(told.split())
    assert other == (2, "", "")


def test_alone_there_is_no_team() -> None:
    assert Team.of("cpu") == Team()
    with Team().first(), Team().one_voice():
        pass
