"""Several processes make one nested model: the same as one makes, told once; an error ends the run of all."""

from pathlib import Path

import pytest
from tests.elastic.test_pipeline import command
from tests.teams import Ended, together
from transformers import AutoModelForCausalLM

from befit.cli import main
from befit.rundir import read_json

WRONG = {
    "the smallest has": "--budgets=100%, 5%",  # the main process alone meets it, while the others wait
    "4 micro-batches of 2 processes": "--train.micro-batches=4",
    "the loss of budget": "--train.lr=1e30",  # both meet it, in training
}
"""What befit says, and to what."""


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
