"""The documentation says what is so: its Python runs, its verbs exist, its links lead somewhere, its numbers were recorded."""

import ast
import importlib.util
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CLI = ROOT / "src" / "befit" / "cli.py"

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
VERB = re.compile(r"\bbefit ([a-z]+)\b")


def _blocks(page: Path, *languages: str) -> list[str]:
    return [code for language, code in BLOCK.findall(page.read_text()) if language in languages]


def _id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [page for page in PAGES if _blocks(page, "python")], ids=_id)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__page__"}
    for language, code in BLOCK.findall(text := page.read_text()):
        if language == "python":
            above = text[: text.index(code)].count("\n")  # so that a traceback gives the page's own line numbers
            exec(compile("\n" * above + code, str(page), "exec"), names)


def _mentioned(page: Path) -> set[str]:
    """Verbs of befit in code blocks and in `inline code`; in prose, "befit fits" is a sentence."""
    code = _blocks(page, "bash", "console") + re.findall(r"`(befit [^`]*)`", page.read_text())
    return set(VERB.findall("\n".join(code)))


def _verbs() -> set[str]:
    """The verbs the command line knows: the keys of the one literal dictionary in cli.py that has `puzzle`."""
    for node in ast.walk(ast.parse(CLI.read_text())):
        if isinstance(node, ast.Dict):
            keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
            if "puzzle" in keys:
                return {str(key) for key in keys}
    raise AssertionError("cli.py has no literal dictionary of verbs")


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_verbs_exist(page: Path) -> None:
    assert _mentioned(page) - _verbs() == set()


def _commands(page: Path) -> list[str]:
    lines = "\n".join(_blocks(page, "bash", "console")).splitlines()
    return [line.removeprefix("$ ") for line in lines if line.removeprefix("$ ").startswith("befit ")]


@pytest.mark.parametrize("command", sorted({command for page in PAGES for command in _commands(page)}))
def test_commands_are_understood(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real command line reads them (tyro exits where it cannot); the work itself is left out, and runs are missing."""
    from befit import cli
    from befit.budget import Budget
    from befit.cost.workload import Workload
    from befit.puzzle import plan

    asked: list[Any] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_run", asked.append)
    monkeypatch.setattr(cli, "_quiet", lambda: None)
    monkeypatch.setattr(plan, "plan", lambda config: asked.append(config) or [])
    words = shlex.split(command, comments=True)[1:]
    assert cli.main(words) == (0 if words[0] == "puzzle" else 2)
    for config in asked:
        Budget.parse(config.budget)
        Workload.parse(config.workload)


def test_the_table_of_verbs_is_complete() -> None:
    table = set(re.findall(r"^\| `befit ([a-z]+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert table == _verbs()


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_page_is_in_the_index() -> None:
    linked = set(LINK.findall((ROOT / "docs" / "index.md").read_text()))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - linked == {"index.md"}


def test_files_in_the_reading_order_exist() -> None:
    files = re.findall(r"^\d\. `([^`]+)`", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(files) == 6
    assert [file for file in files if not (ROOT / file).exists()] == []


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("update_figures", ROOT / "docs" / "update_figures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_figures_are_the_recorded_ones(figures: ModuleType) -> None:
    recorded: Mapping[str, Any] | None = json.loads(figures.RESULT.read_text()) if figures.RESULT.exists() else None
    readme = (ROOT / "README.md").read_text()
    assert readme == figures.updated(readme, recorded), "run: python docs/update_figures.py"


def _model(scale: float, kl: float | None = None) -> dict[str, Any]:
    times = {"measured": 10.0 * scale, "predicted": 11.0 * scale}
    return {
        "params": int(3e6 * scale),
        "weight_bytes": int(6 * 2**20 * scale),
        "cache_bytes": int(2 * 2**20 * scale),
        "prefill_ms": times,
        "decode_ms": times,
        "loss": 3.0,
        "kl": kl,
    }


def test_figures_read_a_summary(figures: ModuleType) -> None:
    child = {**_model(0.5, 0.1234), "kl_sum": 0.2, "kl_before_heal": 0.3}
    summary = {
        "budget": {"text": "memory=50%"},
        "parent": _model(1.0),
        "child": child,
        "baselines": {"uniform": _model(0.5, 0.4)},
        "stages": [
            {"name": "rank", "seconds": 1.6, "reused": False},
            {"name": "heal", "seconds": 3.0, "reused": False},
        ],
    }
    text = figures.block({"command": "make demo", "machine": "a machine", "summary": summary})
    assert "| parent | 3.00 M | 8.00 MiB (100%) | 10.00 ms (100%) | 10.00 ms (100%) | 3.000 | 0 |" in text
    assert "| **child** | 1.50 M | 4.00 MiB (50%) | 5.00 ms (50%) | 5.00 ms (50%) | 3.000 | 0.1234 |" in text
    assert "| uniform |" in text
    assert "before it was built: prefill 5.50 ms, decode 5.50 ms." in text
    assert "add up to 0.2000; its KL was 0.3000" in text
    assert "5 seconds in all: rank 2, heal 3." in text


def test_figures_need_their_place(figures: ModuleType) -> None:
    with pytest.raises(ValueError, match="demo:begin"):
        figures.updated("# befit\n", None)
