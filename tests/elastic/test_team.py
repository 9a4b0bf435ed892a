"""Several processes make one nested model: the same as one makes, told once; an error ends the run of all."""

import json
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

WRONG = {
    "the smallest has": "--budgets=100%, 5%",  # the main process alone meets it, while the others wait
    "4 micro-batches of 2 processes": "--train.micro-batches=4",
    "the loss of budget": "--train.lr=1e30",  # both meet it, in training
}
"""What befit says, and to what."""
PROGRAM = """
import json, sys
from befit.cli import main
for arguments in json.loads(sys.argv[1]):
    try:
        code = main(arguments)
    except SystemExit as left:
        code = left.code
    for stream in sys.stdout, sys.stderr:
        print("ENDED", code, "ENDED", file=stream, flush=True)
"""
"""Runs befit several times, because starting Python takes longest here."""
Ended = tuple[int, str, str]
"""Exit code, stdout, stderr of one run."""


def together(runs: list[list[str]], size: int = 2) -> list[list[Ended]]:
    """Run befit in `size` processes of one team, the main one first; no launcher ends the others if one fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    shared |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    team = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(runs)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        said = [one.communicate(timeout=100) for one in team]
    finally:
        for one in team:
            one.kill()
    found = list[list[Ended]]()
    for out, err in said:
        outs, errs = out.split("ENDED"), err.split("ENDED")
        assert len(outs) == 2 * len(runs) + 1, err
        found.append([(int(outs[i + 1]), outs[i].strip(), errs[i].strip()) for i in range(0, len(outs) - 1, 2)])
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("team")


@pytest.fixture(scope="module")
def ended(folder: Path) -> list[list[Ended]]:
    """A run of two processes, after others that could not be; for each process."""
    wrong = [[*command(folder, folder / str(i)), more] for i, more in enumerate(WRONG.values())]
    return together([*wrong, command(folder, folder / "team", "nemotron_h", "--baselines")])


def test_two_processes_make_what_one_makes(folder: Path, ended: list[list[Ended]], tmp_path: Path) -> None:
    (code, out, _), other = ended[0][-1], ended[1][-1]
    assert code == 0 and "report.html" in out
    assert other == (0, "", "")
    assert main(command(folder, tmp_path / "alone", "nemotron_h", "--baselines")) == 0
    one, two = read_json(tmp_path / "alone" / "summary.json"), read_json(folder / "team" / "summary.json")
    assert not any(stage["reused"] for stage in two["stages"])
    assert [row["member"] for row in two["members"]] == [row["member"] for row in one["members"]]
    for name in ("kl", "kl_untrained", "loss"):
        assert [row[name] for row in two["members"]] == pytest.approx([row[name] for row in one["members"]], abs=1e-3)
    for name, rows in one["baselines"].items():
        assert [row["kl"] for row in two["baselines"][name]] == pytest.approx([row["kl"] for row in rows], abs=1e-3)
    assert [one["training"][name] for name in ("tokens", "members_over_time")] == [
        two["training"][name] for name in ("tokens", "members_over_time")
    ]
    for row in two["members"]:
        if row["trained"]:
            cut = tmp_path / str(row["budget"])
            assert main(["cut", str(folder / "team"), f"--budget={row['budget']:.0%}", f"--out={cut}"]) == 0
            assert AutoModelForCausalLM.from_pretrained(cut).num_parameters() == row["params"]


@pytest.mark.parametrize(("place", "words"), list(enumerate(WRONG)))
def test_an_error_is_told_once_and_ends_both(place: int, words: str, ended: list[list[Ended]]) -> None:
    (code, _, told), other = ended[0][place], ended[1][place]
    assert code == 2 and words in " ".join(told.split())
    assert other == (2, "", "")


def test_one_process_goes_on_with_what_two_made(folder: Path, ended: list[list[Ended]]) -> None:
    before = read_json(folder / "team" / "summary.json")
    assert main(command(folder, folder / "team", "nemotron_h", "--baselines")) == 0
    after = read_json(folder / "team" / "summary.json")
    assert all(stage["reused"] for stage in after["stages"])
    assert after["members"] == before["members"]


def test_alone_there_is_no_team() -> None:
    assert Team.of("cpu") == Team()
    with Team().first(), Team().one_voice():
        pass
