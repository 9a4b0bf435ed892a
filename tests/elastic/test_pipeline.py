"""`befit elastic` and `befit cut` as a user meets them: on tiny parents, with wrong input, killed and resumed."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny_run
from transformers import AutoModelForCausalLM, AutoTokenizer

from befit.arch.member import Member, nested
from befit.cli import main
from befit.elastic.config import ElasticConfig
from befit.elastic.curriculum import Stage, parse_stages
from befit.errors import BadData, RunConflict
from befit.rundir import read_json, read_tensors

QUICK = (
    "--budgets=100%, 70%, 50%",
    "--stages=640@16x8, 256@32x4:0.5/0.3/0.2",
    "--rank-tokens=256",
    "--depth-tokens=64",
    "--held-out=6",
    "--train.router-every=2",
    "--train.micro-batches=2",
    "--train.checkpoint-seconds=0",
    "--workload=batch=2,prompt=8,generate=4",
    "--device=cpu",
    "--dtype=fp32",
)
FAMILIES = ("nemotron_h", "llama")


def command(folder: Path, out: Path, family: str = "nemotron_h", *more: str) -> list[str]:
    """`befit elastic` on a parent and a text in `folder`, which are written if they are not there."""
    parent, data = folder / family, folder / "text.jsonl"
    if not parent.exists():
        tiny_run.write_parent(parent, family, 5 if family == "nemotron_h" else 4)
    if not data.exists():
        tiny_run.write_text(data)
    return ["elastic", f"--parent={parent}", f"--data={data}", f"--out={out}", *QUICK, *more]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs of each family, which tests leave as they are."""
    folder = tmp_path_factory.mktemp("workshop")
    for family in FAMILIES:
        assert main(command(folder, folder / f"run-{family}", family, "--baselines")) == 0
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_every_budget_is_met_within_a_percent_and_its_cut_loads_by_itself(
    family: str, workshop: Path, tmp_path: Path
) -> None:
    told = read_json(workshop / f"run-{family}" / "summary.json")
    assert [one["budget"] for one in told["members"] if one["trained"]] == [1.0, 0.7, 0.5]
    rows = read_tensors(next((workshop / f"run-{family}").glob("stages/text-*/text.safetensors")))["held_out"]
    parent = AutoModelForCausalLM.from_pretrained(workshop / family).eval()
    for one in told["members"]:
        out = tmp_path / str(one["budget"])
        budget = f"{one['budget']!r}x".replace("1.0x", "100%")
        assert main(["cut", str(workshop / f"run-{family}"), f"--budget=params={budget}", f"--out={out}"]) == 0
        model: Any = AutoModelForCausalLM.from_pretrained(out).eval()
        if one["trained"]:
            assert model.num_parameters() == one["params"]
            assert 0.99 * one["limit"] <= one["value"] <= one["limit"] or one["budget"] == 1
            with torch.no_grad():  # what the summary says of the member is true of the checkpoint
                logits, own = model(rows, use_cache=False).logits, parent(rows, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
            kl = torch.nn.functional.kl_div(
                logits.log_softmax(-1), own.log_softmax(-1), log_target=True, reduction="none"
            )
            assert float(loss) == pytest.approx(one["loss"], abs=1e-4)
            assert float(kl.sum(-1).mean()) == pytest.approx(one["kl"], abs=1e-4)
        ids = AutoTokenizer.from_pretrained(out)("river stone", return_tensors="pt")["input_ids"]
        assert model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False).shape[1] == ids.shape[1] + 4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_nested_checkpoint_is_an_ordinary_one_with_a_small_extra(family: str, workshop: Path) -> None:
    folder = workshop / f"run-{family}" / "nested"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__name__ == {"nemotron_h": "NemotronHForCausalLM", "llama": "LlamaForCausalLM"}[family]
    manifest = read_json(folder / "nested.json")
    members = [Member.from_json(entry["member"]) for entry in manifest["entries"]]
    assert members[0].depth == model.config.num_hidden_layers
    assert all(entry["quality"] and entry["hash"] for entry in manifest["entries"])
    assert all(nested(member, members[0]) for member in members)


def test_the_summary_tells_of_baselines_storage_and_the_slider(workshop: Path) -> None:
    told = read_json(workshop / "run-nemotron_h" / "summary.json")
    assert set(told["baselines"]) == {"uniform", "greedy", "random", "additive", "separate"}
    uniform = told["baselines"]["uniform"]
    assert {one["trained"] for one in uniform} == {True, False}
    assert [one["budget"] for one in told["baselines"]["separate"]] == [0.5]
    assert set(told["ranking"]["depth"]) == {"iterative", "single", "cosine", "perplexity"}
    sizes = [row["memory_bytes"] for row in told["panel"]["members"]]
    assert sizes == sorted(sizes) and len(sizes) > 10
    assert told["storage"]["nested_bytes"] < sum(one["bytes"] for one in told["storage"]["separate"])
    assert (workshop / "run-nemotron_h" / "report.html").read_text().count("<svg") > 5


def test_a_second_call_reads_everything_and_tells_the_same(workshop: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(command(workshop, out)) == 0
    first = read_json(out / "summary.json")
    assert main(["resume", str(out)]) == 0
    again = read_json(out / "summary.json")
    assert all(stage["reused"] for stage in again["stages"])
    for name in ("members", "baselines", "storage", "ranking"):
        assert again[name] == first[name]


def test_a_run_that_is_killed_in_training_goes_on_and_ends_the_same(workshop: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    program = (
        "import os\nfrom befit.cli import main\nfrom befit.elastic import train\n"
        "def stop(self, *args, step=train._Training._step):\n"
        "    step(self, *args)\n    self.count = getattr(self, 'count', 0) + 1\n"
        "    if self.count == 5: os._exit(9)\n"
        f"train._Training._step = stop\nmain({command(workshop, out)!r})"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, capture_output=True).returncode == 9
    assert not (out / "summary.json").exists()
    assert main(["resume", str(out)]) == 0
    whole = tmp_path / "whole"
    assert main(command(workshop, whole)) == 0
    assert (out / "nested/model.safetensors").read_bytes() == (whole / "nested/model.safetensors").read_bytes()
    assert (out / "nested/router.safetensors").read_bytes() == (whole / "nested/router.safetensors").read_bytes()


def test_gains_per_layer_widths_and_the_sandwich_work_together(workshop: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    more = ("--ffn-per-layer", "--train.gains", "--train.mode=sandwich", "--train.recompute", "--start=additive")
    assert main(command(workshop, out, "nemotron_h", *more)) == 0
    told = read_json(out / "summary.json")
    widths = {str(one["member"]["ffn"]) for one in told["members"]}
    assert told["storage"]["gains_bytes"] > 0 and widths
    for layout, trust in (("padded", False), ("own-code", True)):
        cut = tmp_path / layout
        assert main(["cut", str(out), "--budget=50%", f"--out={cut}", f"--layout={layout}"]) == 0
        assert AutoModelForCausalLM.from_pretrained(cut, trust_remote_code=trust).num_parameters()


def test_budgets_of_memory(workshop: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(command(workshop, out, "nemotron_h", "--budgets=memory=100%, memory=60%")) == 0
    told = read_json(out / "summary.json")
    assert told["cost"] == "memory_bytes"
    small = next(one for one in told["members"] if one["budget"] == 0.6)
    assert 0.99 <= small["memory_bytes"] / (0.6 * told["parent"]["memory_bytes"]) <= 1


def test_budgets_of_latency_are_measured(workshop: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    more = ("--budgets=latency=100%, latency=70%", "--measure.repeats=1", "--measure.seconds=0", "--least=0.25")
    assert main(command(workshop, out, "nemotron_h", *more)) == 0
    told = read_json(out / "summary.json")
    assert told["cost"] == "latency_ms"
    small = next(one for one in told["members"] if one["budget"] == 0.7)
    assert 0 < small["value"] <= small["limit"]
    entries = read_json(out / "nested" / "nested.json")["entries"]
    assert all(entry["latency_ms"] > 0 for entry in entries)
    assert main(["cut", str(out), "--budget=70%", f"--out={tmp_path / 'cut'}"]) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "cut").num_parameters() == small["params"]


Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    def run(arguments: list[str]) -> str:
        try:
            code = main(arguments)
        except SystemExit as left:  # what a configuration refuses, the reader of the command line tells
            code = left.code
        assert code == 2
        return " ".join(capsys.readouterr().err.split())

    return run


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--budgets=100%, 5%",), "the smallest has"),
        (("--budgets=120%",), "at most that of its parent"),
        (("--budgets=100%, memory=50%",), "different costs"),
        (("--budgets=throughput>=50",), "cannot be trained for"),
        (("--stages=10x10",), "cannot read '10x10'"),
        (("--stages=640@100000x8",), "100000"),
        (("--held-out=100000",), "held-out"),
        (("--least=0",), "least must be a share"),
        (("--parent=no/such/model",), "no folder here"),
    ],
)
def test_what_cannot_be_done_is_refused_before_training(
    more: tuple[str, ...], words: str, workshop: Path, tmp_path: Path, refused: Refused
) -> None:
    assert words in refused([*command(workshop, tmp_path / "run"), *more])
    assert not list(tmp_path.glob("run/stages/train-*"))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--budget=5%",), "the smallest has"),
        (("--budget=memory=1KiB",), "the smallest has"),
        (("--budget=speed=5",), "unknown cost"),
        ((), "budget"),
        (("--budget=50%", "--workload=batch=0"), "at least 1"),
    ],
)
def test_cuts_that_cannot_be_are_refused(
    more: tuple[str, ...], words: str, workshop: Path, tmp_path: Path, refused: Refused
) -> None:
    assert words in refused(["cut", str(workshop / "run-nemotron_h"), f"--out={tmp_path / 'cut'}", *more])
    assert not (tmp_path / "cut").exists()


def test_a_folder_that_is_no_nested_model(tmp_path: Path, refused: Refused) -> None:
    assert "nested" in refused(["cut", str(tmp_path), "--budget=50%", f"--out={tmp_path / 'cut'}"])


def test_heads_that_groups_cannot_share_are_refused(workshop: Path, tmp_path: Path, refused: Refused) -> None:
    parent = tmp_path / "parent"
    tiny_run.write_parent(parent, "nemotron_h", 5)
    config = json.loads((parent / "config.json").read_text())
    (parent / "config.json").write_text(json.dumps(config | {"n_groups": 3}))
    message = refused([*command(workshop, tmp_path / "run"), f"--parent={parent}"])
    assert "cannot share 3 SSM groups evenly" in message


def test_stages_are_read_as_they_are_written() -> None:
    assert parse_stages("1.5M@128x16, 300k@256x8:0.5/0.3/0.2") == (
        Stage(tokens=1_500_000, sequence=128, batch=16),
        Stage(tokens=300_000, sequence=256, batch=8, weights=(0.5, 0.3, 0.2)),
    )
    with pytest.raises(BadData, match="cannot read"):
        parse_stages("many")


def test_a_configuration_survives_its_file_and_refuses_unknown_keys() -> None:
    config = ElasticConfig(stages="1k@16x8", least=0.4)
    told: dict[str, Any] = json.loads(json.dumps(config.to_json()))
    assert ElasticConfig.from_json(told) == config
    with pytest.raises(RunConflict, match="does not know"):
        ElasticConfig.from_json(told | {"colour": "blue"})
