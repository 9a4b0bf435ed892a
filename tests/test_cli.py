"""The command line: what it prints, what it refuses and how, and that nothing is lost by a refusal."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests import tiny_run
from transformers import GPT2Config

from befit import cli
from befit.cli import main

BUDGET = "memory=70%"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parent, its text and `run`, a finished run on them."""
    folder = tmp_path_factory.mktemp("workshop")
    assert main(tiny_run.command(folder, folder / "run", BUDGET, "--heal.tokens=128")) == 0
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


Refused = Callable[..., str]


@pytest.fixture
def refused(workshop: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must fail with exit code 2, a message on stderr alone, and the finished run untouched."""

    def run(*arguments: str) -> str:
        before = contents(workshop / "run")
        capsys.readouterr()
        try:
            code = main(arguments)
        except SystemExit as left:  # how the parser of arguments ends
            code = left.code
        told = capsys.readouterr()
        assert code == 2 and not told.out and "Traceback" not in told.err
        assert contents(workshop / "run") == before
        return " ".join(told.err.replace("│", " ").split())

    return run


@pytest.mark.parametrize(
    "program", [["-m", "befit"], ["-c", "import sys; from befit.cli import main; sys.exit(main())"]]
)
def test_as_a_program_without_a_verb(program: list[str]) -> None:
    done = subprocess.run([sys.executable, *program, "puzle"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "there is no verb 'puzle'" in done.stderr and "befit resume" in done.stderr
    assert not done.stdout


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_verbs(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert all(f"befit {verb}" in shown for verb in ("puzzle", "resume", "report", "solve", "measure", "parent"))


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ("speed=3", "speed"),
        ("memory=3 bananas", "bananas"),
        ("memory", "expected WORD=VALUE"),
        ("", "empty"),
        ("memory>=3GiB", "memory"),
        ("memory=60%, memory=70%", "twice"),
    ],
)
def test_a_budget_that_cannot_be_read(budget: str, words: str, workshop: Path, refused: Refused) -> None:
    arguments = tiny_run.command(workshop, workshop / "new", budget)
    message = refused(*arguments)
    assert message.startswith("befit puzzle: ") and words in message
    assert not (workshop / "new").exists()
    assert words in refused(*arguments, "--dry-run")


@pytest.mark.parametrize("place", ["new", "run"])
def test_a_budget_that_no_child_can_meet(place: str, workshop: Path, refused: Refused) -> None:
    arguments = tiny_run.command(workshop, workshop / place, "params=90%, memory=20KiB", "--heal.tokens=128")
    message = refused(*arguments)
    assert "memory cannot be met by any choice" in message and "memory is at least" in message
    assert "The nearest choice has" in message and "Widen memory" in message
    assert not (workshop / "new").exists()


def test_a_time_that_no_child_can_meet_loses_nothing(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = workshop / "run"
    before = contents(run)
    arguments = tiny_run.command(workshop, run, "latency=0.001ms", "--heal.tokens=128")
    assert main(arguments) == 2
    assert "latency cannot be met" in capsys.readouterr().err
    after = contents(run)
    changed = {path.name for path in before if after[path] != before[path]}
    assert set(before) <= set(after) and changed <= {"config.json"}
    assert main(tiny_run.command(workshop, run, BUDGET, "--heal.tokens=128")) == 0


BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "variant of attention": (("--attention=all,half",), "unknown attention variant 'half'; expected all, /N"),
    "variant of the FFN": (("--ffn=100,150",), "unknown FFN variant '150'"),
    "workload": (("--workload=batch=0",), "workload: batch must be a whole number of at least 1"),
    "word of the workload": (("--workload=rows=3",), "workload: cannot read 'rows=3'"),
    "device": (("--device=tpu",), "tpu"),
    "number": (("--sequence=many",), "many"),
    "range": (("--heal.tokens=0",), "tokens must be above 0"),
    "option": (("--colour=red",), "--colour"),
    "metric": (("--score.metric=bleu",), "unknown metric 'bleu'"),
    "task": (("--score.metric=task:no_such_module:f",), "no_such_module"),
    "missing parent": (("--parent=./no/such/folder",), "no/such/folder"),
    "missing text": (("--data=no_such_file.txt",), "there is no file or folder"),
    "little text": (("--score-sequences=10000",), "tokens, but"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_done_is_refused(case: str, workshop: Path, refused: Refused) -> None:
    more, words = BAD[case]
    arguments = tiny_run.command(workshop, workshop / "refused", BUDGET)
    kept = [a for a in arguments if a.partition("=")[0] not in {m.partition("=")[0] for m in more}]
    assert words in refused(*kept, *more)
    # Mended, the same directory takes the run.
    assert not list((workshop / "refused").glob("stages/*/done.json"))


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("binary.txt", b"\x00\x01\x02" * 50, "holds zero bytes, so it is binary data"),
        ("latin.txt", "grün".encode("latin-1") * 50, "is not UTF-8 text"),
        ("other.jsonl", b'{"body": "x"}\n', "no 'text', its keys are ['body']"),
        ("broken.jsonl", b'{"text": "x"}\n{"text":\n', "line 2 is not JSON"),
        ("picture.png", b"\x89PNG", "is neither .txt nor .jsonl"),
        ("short.txt", b"only a few words\n", "give more text"),
        ("empty.txt", b"", "holds no text"),
    ],
)
def test_text_that_cannot_be_used(
    name: str, data: bytes, words: str, workshop: Path, refused: Refused, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_bytes(data)
    arguments = [a for a in tiny_run.command(workshop, tmp_path / "out", BUDGET) if not a.startswith("--data")]
    message = refused(*arguments, f"--data={file}")
    assert words in message and name in message
    assert file.read_bytes() == data


def test_a_parent_of_another_family(workshop: Path, refused: Refused, tmp_path: Path) -> None:
    GPT2Config(architectures=["GPT2LMHeadModel"]).save_pretrained(tmp_path / "gpt2")
    message = refused("puzzle", f"--parent={tmp_path / 'gpt2'}", f"--out={tmp_path / 'out'}", "--device=cpu")
    assert "'gpt2' (GPT2LMHeadModel)" in message and "llama, mistral, nemotron_h, qwen2, qwen3" in message
    assert not (tmp_path / "out").exists()


def test_a_parent_that_lacks_something(workshop: Path, refused: Refused, tmp_path: Path) -> None:
    whole = workshop / "parent"
    arguments = tiny_run.command(workshop, tmp_path / "out", BUDGET)
    arguments = [a for a in arguments if not a.startswith("--parent")] + [f"--parent={tmp_path / 'parent'}"]
    for lost, words in (
        ("config.json", "has no config.json"),
        ("model.safetensors", "no .safetensors weights"),
        ("tokenizer.json", "has no tokenizer"),
    ):
        shutil.copytree(whole, tmp_path / "parent")
        (tmp_path / "parent" / lost).unlink()
        assert words in refused(*arguments)
        shutil.rmtree(tmp_path / "parent")


def test_a_directory_that_holds_something_else(workshop: Path, refused: Refused, tmp_path: Path) -> None:
    other = refused(*tiny_run.command(workshop, workshop / "run", BUDGET, "--heal.tokens=128", "--seed=5"))
    assert "another configuration (seed was 0, now 5)" in other and "another --out" in other
    (tmp_path / "letter.txt").write_text("dear")
    assert "holds no befit run" in refused(*tiny_run.command(workshop, tmp_path, BUDGET))
    assert "is a file" in refused(*tiny_run.command(workshop, tmp_path / "letter.txt", BUDGET))
    for verb in ("resume", "report"):
        assert str(tmp_path) in refused(verb, str(tmp_path))
    assert "has no table.json" in refused("solve", str(tmp_path), "--budget=memory=80%")
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_dry_run_tells_the_plan_and_writes_nothing(
    workshop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*tiny_run.command(workshop, Path("new"), BUDGET), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "nothing has been run" in shown and "llama, 3 layers" in shown and "memory<=70%" in shown
    for stage in ("rank", "library", "score", "measure", "choose", "heal", "evaluate", "total"):
        (line,) = (line for line in shown.splitlines() if line.startswith(stage))
        assert re.search(r"\d (us|ms|s) .*B", line)
    assert list(tmp_path.iterdir()) == []


def test_another_device_is_for_a_dry_run_alone(workshop: Path, refused: Refused) -> None:
    message = refused(*tiny_run.command(workshop, workshop / "new", BUDGET), "--on=h200")
    assert "--on h200 plans for another device" in message and "add --dry-run" in message
    assert not (workshop / "new").exists()


TABLE = {
    "layers": [
        {
            "options": [
                {"name": "whole", "score": 0.0, "costs": {"ms": 3}},
                {"name": "half", "score": 0.25, "costs": {"ms": 1}},
            ]
        },
        {
            "options": [
                {"name": "whole", "score": 0.0, "costs": {"ms": 3}},
                {"name": "half", "score": 0.5, "costs": {"ms": 1}},
            ]
        },
    ],
    "fixed": {"ms": 1},
}


def test_solving_a_table_prints_exact_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    file = tmp_path / "table.json"
    file.write_text(json.dumps(TABLE))
    assert main(["solve", str(file), "--budget", "ms<=5"]) == 0
    told = capsys.readouterr()
    best = {"score": 0.25, "choice": [1, 0], "costs": {"ms": 5.0}, "names": ["half", "whole"]}
    assert json.loads(told.out) == best and not told.err
    assert main(["solve", str(file), "--budget", "ms<=5", "--solutions", "2"]) == 0
    second = {"score": 0.5, "choice": [0, 1], "costs": {"ms": 5.0}, "names": ["whole", "half"]}
    assert json.loads(capsys.readouterr().out) == best | {"solutions": [best, second]}
    assert "ms cannot be met by any choice" in refused("solve", str(file), "--budget", "ms<=2")
    assert "unknown" in refused("solve", str(file), "--budget", "kg<=2")
    file.write_text('{"layers": []}')
    assert "at least one layer" in refused("solve", str(file), "--budget", "ms<=2")
    file.write_text("{")
    assert "is not JSON" in refused("solve", str(file), "--budget", "ms<=2")
    assert "cannot be read" in refused("solve", str(tmp_path / "none.json"), "--budget", "ms<=2")


def test_solving_a_run_anew(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = workshop / "run"
    before, parent = contents(run), json.loads((run / "parent_costs.json").read_text())
    found: dict[str, Any] = {}
    for share in ("80%", "100%", "45%"):
        capsys.readouterr()
        assert main(["solve", str(run), f"--budget=memory={share}"]) == 0
        found[share] = json.loads(capsys.readouterr().out)
        assert found[share]["costs"]["memory_bytes"] <= float(share[:-1]) / 100 * parent["memory_bytes"]
        assert any(name.startswith("kv") for name in found[share]["names"])
    assert found["100%"]["score"] <= found["80%"]["score"] < found["45%"]["score"]
    assert main(["solve", str(run), "--budget=cache=10%"]) == 2  # a choice without any attention would do
    capsys.readouterr()
    answers = []
    for text in ("throughput>=1.25x", "latency<=80%", "throughput>=1.25x, latency<=90%"):
        assert main(["solve", str(run), f"--budget={text}"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0]["choice"] == answers[1]["choice"] == answers[2]["choice"]  # the same bound in other words
    assert contents(run) == before


def test_the_report_is_drawn_anew(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = workshop / "run" / "report.html"
    drawn = page.read_text()
    page.unlink()
    capsys.readouterr()
    assert main(["report", str(workshop / "run")]) == 0
    assert capsys.readouterr().out.strip() == str(page)
    assert page.read_text() == drawn


def test_the_result_goes_to_stdout_and_the_rest_to_stderr(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["resume", str(workshop / "run")]) == 0
    told = capsys.readouterr()
    assert "parent" in told.out and "child" in told.out and "KL before healing" in told.out
    assert "memory <= 70%" in told.out and "counted, kept" in told.out
    assert str(workshop / "run" / "child") in told.out and "library" not in told.out


def test_a_full_disk_stops_the_run_and_loses_nothing(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = tiny_run.command(workshop, workshop / "full", BUDGET, "--heal.tokens=128")
    flush, files = os.fsync, list[int]()

    def full(number: int) -> None:
        files.append(number)
        if len(files) > 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert main(arguments) == 2
    assert "befit puzzle: no room on the disk for" in capsys.readouterr().err
    kept = {path: path.stat().st_mtime_ns for path in (workshop / "full").glob("stages/*/*")}
    assert kept and not [path for path in kept if path.name.startswith(".")]
    assert main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_the_interrupt_key_ends_with_130_and_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(cli, "resume_verb", interrupted)
    assert main(["resume", "x"]) == 130
    told = capsys.readouterr()
    assert "stopped; what was finished is kept" in told.err and not told.out
    monkeypatch.setattr(cli, "bench_verb", interrupted)
    assert main(["bench", "x"]) == 130
    assert capsys.readouterr().err == "befit bench: stopped\n"  # nothing of it is kept


def test_a_full_disk_that_nobody_named_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failed(number: int) -> Callable[[Any], None]:
        def verb(_: Any) -> None:
            raise OSError(number, os.strerror(number), "runs/report.html.tmp")

        return verb

    monkeypatch.setattr(cli, "report_verb", failed(errno.ENOSPC))
    assert main(["report", "x"]) == 2
    assert "no room on the disk for runs/report.html.tmp; free some space" in capsys.readouterr().err
    monkeypatch.setattr(cli, "report_verb", failed(errno.EIO))
    with pytest.raises(OSError, match="report"):
        main(["report", "x"])
