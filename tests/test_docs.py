"""The documentation says what is so: its Python runs, its verbs exist, its links lead somewhere, its numbers were recorded."""

import ast
import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CLI = ROOT / "src" / "befit" / "cli" / "__init__.py"

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
    """The verbs the command line knows: the keys of the one literal dictionary in cli that has `puzzle`."""
    for node in ast.walk(ast.parse(CLI.read_text())):
        if isinstance(node, ast.Dict):
            keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
            if "puzzle" in keys:
                return {str(key) for key in keys}
    raise AssertionError("cli has no literal dictionary of verbs")


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
    from befit.cli import images, language, runs
    from befit.cost.workload import Workload
    from befit.elastic.budgets import parse_targets
    from befit.elastic.config import ElasticConfig
    from befit.puzzle import plan
    from befit.search.config import SearchConfig

    asked: list[Any] = []
    monkeypatch.chdir(tmp_path)
    for name in ("run_puzzle", "run_elastic"):
        monkeypatch.setattr(language, name, asked.append)
    monkeypatch.setattr(images, "run_search", asked.append)
    for module in (images, language, runs):
        monkeypatch.setattr(module, "quiet", lambda: None)
    monkeypatch.setattr(plan, "plan", lambda config: asked.append(config) or [])
    words = shlex.split(command, comments=True)[1:]
    assert cli.main(words) == (0 if words[0] in ("puzzle", "elastic", "search") else 2)
    for config in asked:
        if isinstance(config, SearchConfig):
            assert config.budget is None or Budget.parse(config.budget)
            continue
        if isinstance(config, ElasticConfig):
            parse_targets(config.budgets, dict.fromkeys(("params", "memory_bytes", "latency_ms"), 1e15))
        else:
            Budget.parse(config.budget)
        Workload.parse(config.workload)


def test_the_table_of_verbs_is_complete() -> None:
    table = set(re.findall(r"^\| `befit ([a-z]+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert table == _verbs()


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_tests_that_are_linked_exist(page: Path) -> None:
    linked = re.findall(r"\[`(test_\w+)`\]\(([^)]+)\)", page.read_text())
    assert [name for name, file in linked if f"def {name}(" not in (page.parent / file).read_text()] == []


def test_every_page_is_in_the_index() -> None:
    linked = set(LINK.findall((ROOT / "docs" / "index.md").read_text()))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - linked == {"index.md"}


def test_files_in_the_reading_order_exist() -> None:
    files = re.findall(r"^\d\. `([^`]+)`", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(files) == 8
    assert [file for file in files if not (ROOT / file).exists()] == []


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("update_figures", ROOT / "docs" / "update_figures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_figures_are_the_recorded_ones(figures: ModuleType) -> None:
    demo, elastic = figures.recorded(figures.RESULT), figures.recorded(figures.ELASTIC)
    readme = (ROOT / "README.md").read_text()
    assert readme == figures.updated(readme, demo, elastic), "run: python docs/update_figures.py"
    assert figures.PAGE.read_text() == figures.page(), "run: python docs/update_figures.py"


def _model(scale: float, kl: float) -> dict[str, Any]:
    return {
        "params": int(3e6 * scale),
        "memory_bytes": int(8 * 2**20 * scale),
        "latency_ms": {"measured": 100.0 * scale, "predicted": 110.0 * scale},
        "loss": 3.0,
        "kl": kl,
        "kl_before_heal": 2 * kl,
    }


def test_figures_read_a_summary(figures: ModuleType) -> None:
    names = {"rank": 1.6, "sort": 0.1, "library": 9.0, "score": 8.0, "heal": 3.0}
    summary = {
        "device": {"name": "a processor", "engine": "an engine", "dtype": "fp32"},
        "budget": {"text": "memory<=50%", "met": True},
        "parent": _model(1.0, 0.0),
        "child": _model(0.5, 0.1),
        "baselines": {"uniform": _model(0.5, 0.4), "greedy": _model(0.4, 0.3)},
        "accuracy": {"median_error": 0.071},
        "stages": [{"name": name, "seconds": seconds, "reused": False} for name, seconds in names.items()],
    }
    text = figures.block(summary)
    assert "asks for `memory<=50%`, on a processor (an engine, fp32):" in text
    assert "| parent | 3.00 M | 8.00 MiB (100%) | 100.0 ms (100%) | 3.000 |  | 0 |" in text
    assert "| **child** | 1.50 M | 4.00 MiB (50%) | 50.0 ms (50%) | 3.000 | 0.200 | 0.100 |" in text
    assert text.index("| greedy |") < text.index("| uniform |")
    assert "The budget is met as measured." in text
    assert (
        "predicted as 55.0 ms before it was built; over models that were not in the fit, the median error is 7%."
        in text
    )
    assert "The run took 22 s, most of it in library 9 s, score 8 s, heal 3 s, rank 2 s." in text


def test_figures_need_their_place(figures: ModuleType) -> None:
    with pytest.raises(ValueError, match="demo:begin"):
        figures.updated("# befit\n", None)
    with pytest.raises(ValueError, match="elastic:begin"):
        figures.updated("<!-- demo:begin --><!-- demo:end -->", None)


def _nested(budget: float, kl: float, **more: Any) -> dict[str, Any]:
    sizes = {"params": int(4e6 * budget), "memory_bytes": int(8 * 2**20 * budget), "member": {"layers": [0, 2]}}
    return sizes | {"budget": budget, "trained": True, "loss": 3.0, "kl": kl, "kl_untrained": 9 * kl} | more


def test_figures_read_an_elastic_summary(figures: ModuleType) -> None:
    summary = {
        "command": 'befit elastic --parent befit:hybrid --budgets "100%, 50%" --out somewhere',
        "device": {"name": "a processor", "engine": "an engine", "dtype": "bf16"},
        "parent": _nested(1.0, 0.0) | {"loss": 2.5},
        "members": [_nested(1.0, 0.01), _nested(0.75, 0.05, trained=False), _nested(0.5, 0.1)],
        "baselines": {
            "uniform": [{"budget": 0.5, "kl": 1.5, "trained": False}, {"budget": 0.5, "kl": 0.25, "trained": True}],
            "greedy": [{"budget": 0.5, "kl": 1.25, "trained": False}],
            "separate": [{"budget": 0.5, "kl": 0.2, "trained": True}],
        },
        "training": {"seconds": 100.2, "tokens": 1000000},
        "stages": [{"name": "rank", "seconds": 20.0}, {"name": "train", "seconds": 101.0}],
        "storage": {
            "nested_bytes": 8 * 2**20,
            "router_bytes": 40 * 2**10,
            "gains_bytes": 0,
            "separate": [{"budget": 1.0, "bytes": 8 * 2**20}, {"budget": 0.5, "bytes": 4 * 2**20}],
        },
    }
    text = figures.nested_block(summary)
    assert '`befit elastic --parent befit:hybrid --budgets "100%, 50%"`, on a processor (an engine; written in' in text
    assert "| **KL** | KL, uniform ratios | KL, that size alone |" in text
    assert "| 100% | 4.00 M (100.0%) | 8.00 MiB (100%) | 2 | 3.000 | 0.090 | 0.010 |  |  |" in text
    assert "| 50% | 2.00 M (50.0%) | 4.00 MiB (50%) | 2 | 3.000 | 0.900 | 0.100 | 0.250 | 0.200 |" in text
    assert "| 75% |" not in text and "not trained for: 75.0%: 0.050." in text
    assert "took 100 s for 1,000,000 tokens, as many for each of the other two; all stages together took 121 s" in text
    assert "8.00 MiB, router and gains 40 KiB (0.49%); 2 separate checkpoints would have 12.00 MiB." in text
    alone = figures.nested_block(summary | {"baselines": {}})
    assert "| 50% | 2.00 M (50.0%) | 4.00 MiB (50%) | 2 | 3.000 | 0.900 | 0.100 |\n" in alone and "as many" not in alone
    choices = figures._untrained(summary)
    assert "| choice | 50% |" in choices and "| the router's | 0.900 |" in choices
    assert "| uniform | 1.500 |" in choices and "| greedy | 1.250 |" in choices and "separate" not in choices
    assert "0.250" not in choices


def test_figures_read_steps(figures: ModuleType) -> None:
    step = {"shape": "small", "compiled": False, "wanted_share": 0.5, "step_share": 0.55, "peak_bytes": 2**20}
    result = {
        "device": "a processor",
        "threads": 1,
        "versions": {"torch": "2.13"},
        "precision": "fp32",
        "commit": "0123456789",
        "rows": [step | {"way": "slice", "step_ms": 11.0}, step | {"way": "mask", "step_ms": 20.0, "step_share": 1.0}],
    }
    text = figures.steps_block(result)
    assert "| network | parameters | slice | mask |" in text
    assert "| small | 50% | 11.0 ms (0.55), 1 MiB | 20.0 ms (1.00), 1 MiB |" in text
    assert "Made at commit 0123456." in text
