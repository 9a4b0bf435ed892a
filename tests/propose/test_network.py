"""Running a file, and the verb that prints fingerprints: one bad file costs itself alone."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch

from befit.cli import main
from befit.errors import TrialFailed
from befit.propose.inspection import inspected
from befit.propose.network import PRM, Hyperparameters, Maker
from propose.pairs import BASE, edited

IN, OUT = (2, 3, 32, 32), (10,)
ARGUMENTS = {"in_shape": IN, "out_shape": OUT, "prm": {"lr": 0.3}}


def net(init: str) -> str:
    return f"import os, sys, time\nclass Net:\n    def __init__(self, *given):\n        {init}\n"


BAD = {
    net("os._exit(3)"): "no readable answer|exit code 3",
    net("sys.exit('enough')"): "SystemExit: enough",
    net("time.sleep(100)"): "not done after 3 s",
    net("raise KeyError('lost')"): "line 4: KeyError: 'lost'",
    net("os.kill(os.getpid(), 9)"): "SIGKILL",
    net("assert 'BEFIT_TEST_KEY' not in os.environ"): "expected a torch.nn.Module",  # after the assertion
    edited(("prm['dropout']", "prm['rate']")): "'rate' is not in what supported_hyperparameters",
    "import no_such_module\nclass Net: ...": "ModuleNotFoundError",
    "class Net: ...\ndel Net": "no class Net",
    edited(("return self.fc", "if x.mean() > 0:\n            x = x * 2\n        return self.fc")): "looks at numbers",
}


def test_each_file_has_its_own_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BEFIT_TEST_KEY", "secret")
    loud = edited(("SCALE = 2\n", "SCALE = 2\nprint('[]' * 100000)\n"))
    files = list[str]()
    for number, source in enumerate([BASE, *BAD, loud]):
        (tmp_path / f"{number}.py").write_text(source)
        files.append(str(tmp_path / f"{number}.py"))
    assert main(["fingerprint", "--json", "--seconds", "3", *files]) == 0
    told = capfd.readouterr()
    first, *bad, last = json.loads(told.out)
    assert first["graph"] == last["graph"] and re.fullmatch("[0-9a-f]{32}", first["graph"])
    lines = re.split(r"\S+\.py: no graph: ", " ".join(told.err.split()))[1:]
    for row, said, words in zip(bad, lines, BAD.values(), strict=True):
        assert row["graph"] is None and re.search(words, said), (said, words)


def test_a_file_is_run_as_a_module_of_its_own() -> None:
    source = (
        "import dataclasses\n@dataclasses.dataclass\nclass Net:\n    a: int\n    b: int\n    prm: dict\n    d: str\n"
    )
    made = Maker("NOTE = '\\d'\n" + source, ARGUMENTS)(torch.device("cpu"))
    assert (made.a, made.b, made.prm["lr"], made.d) == (IN, OUT, 0.3, torch.device("cpu"))
    assert sys.modules["candidate"].NOTE == "\\d"
    with pytest.raises(TrialFailed, match="no class Net"):
        Maker("x = 1", ARGUMENTS)
    with pytest.raises(ZeroDivisionError):
        Maker("1 / 0", ARGUMENTS)


def test_a_network_lives_where_it_was_made() -> None:
    for device in ("cpu", "meta"):
        made = Maker(BASE, ARGUMENTS)(torch.device(device))
        assert {one.device.type for one in made.parameters()} == {device}
        assert inspected(Maker(BASE, ARGUMENTS), IN, 10, recipe=False)["params"] == sum(
            one.numel() for one in made.parameters()
        )


def test_hyperparameters() -> None:
    some, free = Hyperparameters(["lr", "rate", "other"]), Hyperparameters(None)
    assert some["lr"] == PRM["lr"] and 0 < some["rate"] < 1 and some["rate"] != some["other"]
    assert free["rate"] == some["rate"] and dict(Hyperparameters(["lr", "rate"], {"lr": 0.5})) == {
        "lr": 0.5,
        "rate": some["rate"],
    }
    with pytest.raises(KeyError, match="rates"):
        some["rates"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    sources = {
        "a.py": BASE,
        "renamed.py": edited(("Block", "Unit"), ("self.fc", "self.head")),
        "unrolled.py": edited(("for _ in range(3)", "for _ in (0, 1, 2)")),
        "adam.py": edited(
            ("SGD(self.parameters(), lr=prm['lr'], momentum=prm['momentum'])", "Adam(self.parameters())")
        ),
        "wide.py": edited(("base=8", "base=12"), ("8 * 4 * 4", "12 * 4 * 4")),
        "broken.py": edited(("8 * 4 * 4", "7")),
        "text.py": "no python",
        "other.py": "class Network: ...",
    }
    for name, source in sources.items():
        (folder / name).write_text(source)
    (folder / "bytes.py").write_bytes(b"\xff\xfe\x00")
    return folder


def test_the_verb(files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    good = ["a.py", "renamed.py", "unrolled.py", "adam.py", "wide.py", "broken.py"]
    bad = ["text.py", "other.py", "bytes.py", "missing.py", "."]
    assert main(["fingerprint", "--json", "text.py", *good, *bad]) == 2
    told = capsys.readouterr()
    rows = json.loads(told.out)
    assert [row["file"] for row in rows] == good
    assert all(list(row) == ["file", "whitespace", "tree", "graph", "recipe"] for row in rows)
    a, renamed, unrolled, adam, wide, broken = rows
    assert a["whitespace"] != renamed["whitespace"] and a["tree"] == renamed["tree"] and a["graph"] == renamed["graph"]
    assert a["tree"] != unrolled["tree"] and a["graph"] == unrolled["graph"] and a["recipe"] == unrolled["recipe"]
    assert (a["tree"], a["graph"]) == (adam["tree"], adam["graph"]) and a["recipe"] != adam["recipe"]
    assert a["graph"] != wide["graph"] and a["recipe"] == wide["recipe"]
    assert broken["graph"] is None and re.search(r"broken.py: no graph: line \d+: RuntimeError: .*", told.err)
    for name, words in zip(
        bad, ["not Python", "no class Net", "not Python", "no such file", "cannot be read"], strict=True
    ):
        assert re.search(rf"^(befit fingerprint: )?{re.escape(name)}: .*{words}", told.err, re.MULTILINE), name


def test_the_verb_in_lines(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fingerprint", "--no-build", str(files / "a.py"), str(files / "renamed.py")]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["whitespace", "tree", "graph", "recipe", "file"]
    rows = [line.split() for line in lines]
    assert [row[4] for row in rows] == [str(files / "a.py"), str(files / "renamed.py")]
    assert rows[0][1] == rows[1][1] and [row[2] for row in rows] == ["-", "-"]
    assert main(["fingerprint"]) == 2


def test_files_are_read_as_python_reads_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "# coding: latin-1\n" + BASE.replace("'a b'", "'\xe9'")
    (tmp_path / "latin.py").write_bytes(text.encode("latin-1"))
    (tmp_path / "mark.py").write_bytes(b"\xef\xbb\xbf" + BASE.encode())
    (tmp_path / "plain.py").write_text(BASE)
    names = [str(tmp_path / name) for name in ("latin.py", "mark.py", "plain.py")]
    assert main(["fingerprint", "--no-build", "--json", *names]) == 0
    latin, mark, plain = json.loads(capsys.readouterr().out)
    assert mark["whitespace"] == plain["whitespace"] != latin["whitespace"]
    assert os.fspath(names[0]) == latin["file"]
