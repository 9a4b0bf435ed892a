"""The documentation says what is so: its Python runs, its verbs exist, its links lead somewhere, its numbers were recorded."""

import ast
import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tyro

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CLI = ROOT / "src" / "befit" / "cli" / "__init__.py"

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
ANCHOR = re.compile(r"\]\(([^)#\s]*)#([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
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
    from befit.cli import export, images, language, runs
    from befit.cli import propose as proposing
    from befit.cost.workload import Workload
    from befit.elastic.budgets import parse_targets
    from befit.elastic.config import ElasticConfig
    from befit.propose.arms import arms_of
    from befit.propose.config import ProposeConfig
    from befit.propose.sandbox import trial
    from befit.propose.sandbox.confine import Plan
    from befit.propose.sandbox.trial import Finding
    from befit.puzzle import plan
    from befit.search.config import SearchConfig

    asked: list[Any] = []
    monkeypatch.chdir(tmp_path)
    for name in ("run_puzzle", "run_elastic"):
        monkeypatch.setattr(language, name, asked.append)
    monkeypatch.setattr(images, "run_search", asked.append)
    monkeypatch.setattr(proposing, "run_propose", asked.append)
    monkeypatch.setattr(language, "measure_space", lambda given: asked.append(tyro.cli(SearchConfig, args=given)))
    for module in (export, language, runs):
        monkeypatch.setattr(module, "quiet", lambda: None)
    monkeypatch.setattr(plan, "plan", lambda config, **_: asked.append(config) or [])
    held = Finding(name="loop", protection="an endless loop", enforced=True, how="watch", evidence="timeout")
    monkeypatch.setattr(trial, "try_out", lambda **_: (Plan(), [held]))
    words = shlex.split(command, comments=True)[1:]
    parsed = words[0] in ("puzzle", "elastic", "search", "propose", "sandbox") or "--space" in words
    assert cli.main(words) == (0 if parsed else 2)
    for config in asked:
        if isinstance(config, SearchConfig):
            assert config.budget is None or Budget.parse(config.budget)
            continue
        if isinstance(config, ProposeConfig):
            assert arms_of(config)
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


def _anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings: small letters, hyphens for spaces, no other marks."""
    headings = HEADING.findall(BLOCK.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_anchors_are_headings(page: Path) -> None:
    links = [(file, anchor) for file, anchor in ANCHOR.findall(page.read_text()) if "://" not in file]
    assert [one for one in links if one[1] not in _anchors(page.parent / one[0] if one[0] else page)] == []


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_tests_that_are_linked_exist(page: Path) -> None:
    linked = re.findall(r"\[`(test_\w+)`\]\(([^)]+)\)", page.read_text())
    assert [name for name, file in linked if f"def {name}(" not in (page.parent / file).read_text()] == []


def test_every_page_is_in_the_index() -> None:
    linked = set(LINK.findall((ROOT / "docs" / "index.md").read_text()))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - linked == {"index.md"}


def test_files_in_the_reading_order_exist() -> None:
    files = re.findall(r"^\d\. `([^`]+)`", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(files) == 9
    assert [file for file in files if not (ROOT / file).exists()] == []


@pytest.fixture(scope="module")
def figures() -> Iterator[ModuleType]:
    """The script, loaded as it is when it is run: its neighbours in docs/ can be imported."""
    folder = str(ROOT / "docs")
    sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location("update_figures", ROOT / "docs" / "update_figures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(folder)


@pytest.fixture(scope="module")
def searches(figures: ModuleType) -> ModuleType:
    """What it imports for `befit search`."""
    assert figures.search_sections.__module__ == "search_figures"
    return importlib.import_module("search_figures")


def test_figures_are_the_recorded_ones(figures: ModuleType) -> None:
    found = [figures.recorded(path) for path in (figures.RESULT, figures.ELASTIC, figures.SEARCH)]
    readme = (ROOT / "README.md").read_text()
    assert readme == figures.updated(readme, *found), "run: python docs/update_figures.py"
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
        "predicted as 50% of the parent's (55.0 of 110.0 ms) before it was built, and is 50% as measured; over models that "
        "were not in the fit, the median error is 7%." in text
    )
    assert "The run took 22 s, most of it in library 9 s, score 8 s, heal 3 s, rank 2 s." in text


BLOCKS = ("demo", "elastic", "search")


def test_figures_need_their_place(figures: ModuleType) -> None:
    with pytest.raises(ValueError, match="demo:begin"):
        figures.updated("# befit\n", None)
    with pytest.raises(ValueError, match="elastic:begin"):
        figures.updated("<!-- demo:begin --><!-- demo:end -->", None)
    with pytest.raises(ValueError, match="search:begin"):
        figures.updated("<!-- demo:begin --><!-- demo:end --><!-- elastic:begin --><!-- elastic:end -->", None)
    with pytest.raises(ValueError, match="served:begin"):
        figures.updated("".join(f"<!-- {name}:begin --><!-- {name}:end -->" for name in BLOCKS), None)


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
    step = {
        "shape": "small",
        "compiled": False,
        "wanted_share": 0.5,
        "params_share": 0.5,
        "step_share": 0.55,
        "peak_bytes": 2**20,
    }
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


def test_figures_that_are_missing_are_left_out(figures: ModuleType, tmp_path: Path) -> None:
    assert figures.search_sections(tmp_path) == {}
    counts = {"cells": 1000, "cells_counted_differently": ["a"], "networks": 3, "networks_counted_differently": []}
    counts |= {"ms_per_count": 0.25, "torch": "2.13", "machine": "a processor"}
    (tmp_path / "cell_counts.json").write_text(json.dumps(counts))
    (tmp_path / "image_latency.json").write_text(json.dumps({"note": "the machine was busy"}))
    found = figures.search_sections(tmp_path)
    assert list(found) == ["Counts of the cell network"]  # and nothing of what says that it must not be quoted
    assert "for 999 of 1,000 cells, and `numel` of the built network for 3 of 3" in found["Counts of the cell network"]
    readme = "".join(f"<!-- {name}:begin --><!-- {name}:end -->" for name in (*BLOCKS, "served"))
    assert figures.updated(readme, None).count("No result is recorded yet.") == 3


def _finalist(validation: float, **more: Any) -> dict[str, Any]:
    told = {"arch": {"0->1": "none"}, "validation": validation, "test": 0.95, "counted": {"params": 3000.0}}
    told |= {"predicted": {"latency_ms": 1.5}, "measured": {"latency_ms": 1.25}, "budget": ["latency fits"]}
    return told | {"within": True, "chosen": False} | more


def test_figures_read_a_search(figures: ModuleType) -> None:
    target = {"engine": "torch", "device": "cpu", "batch": 1, "threads": 2}
    over = _finalist(0.96, measured={"latency_ms": 2.5}, within=False, test=None)
    summary = {
        "command": 'befit search --space cell --budget "latency=2ms" --out somewhere',
        "device": {"name": "a processor", "trained_on": "cpu", "target": target, "versions": {"torch": "2.13"}},
        "data": {
            "source": "digits",
            "images": {"train": 1079, "validation": 359, "test": 359},
            "task": {"height": 8, "width": 8},
        },
        "finalists": [_finalist(0.975, chosen=True), over],
        "funnel": [
            {"stage": "proposed", "count": 40},
            {"stage": "within budget by count and prediction", "count": 30},
            {"stage": "refused before building", "count": 10, "lost": True},
            {"stage": "stopped early", "count": 2, "lost": True},
        ],
        "stages": [{"name": "study", "seconds": 60.0}, *[{"name": "train", "seconds": 20.2}] * 2],
    }
    text = figures.search_block(summary)
    assert '`befit search --space cell --budget "latency=2ms"`, on a processor (torch 2.13, trained on cpu;' in text
    assert "| finalist | validation | test | parameters | latency, predicted | latency, measured |" in text
    assert "| **chosen** | 97.5% | 95.0% | 3,000 | 1.5 ms | 1.25 ms |" in text
    assert "| over budget | 96.0% |  | 3,000 | 1.5 ms | 2.5 ms |" in text
    assert "Chosen: latency fits. 0->1 none." in text
    assert "10 of 40 proposals (25%) were over the budget and never built; within budget by count and" in text
    assert "stopped early 2. All stages together took 100 s: study 60 s, train 40 s." in text


def _searches(searcher: str, **more: Any) -> dict[str, Any]:
    versions = {"python": "3.11", "numpy": "2.4", "rivals": {"optuna-tpe": "5.0"}, "commit": "0123456789"}
    told = {"searcher": searcher, "reward": "short", "objective": "long", "queries": 100, "runs": 500, "optimum": 94.5}
    return told | {"bound": None, "share_reached_optimum": 1.0, "versions": versions} | more


def test_figures_read_searchers(searches: ModuleType) -> None:
    final = {"mean": 94.125, "std": 0.25, "median": 94.0}
    regret = {"mean": 0.126, "std": 0.2, "median": 0.0}
    queries = {"queries_to_optimum": {"mean": 75.44, "std": 20.0, "median": 87.5}}
    most, half = ({"share_reached_optimum": share, **queries} for share in (0.6, 0.5))
    near = {"best_asked_regret": regret, "bound": "lat_ms_pi<=12.9231", "share_reached_optimum": 0.4}
    far = {"best_asked_regret": regret, "bound": "lat_ms_pi<=20.0", "optimum": 95.0}
    results = {
        "final/cifar10/optuna-tpe": _searches("optuna-tpe", final=final, runs=40),
        "final/cifar10/random": _searches("random", final=final),
        "final/cifar100/random": _searches("random", final=final, optimum=73.5),
        "to-optimum/cifar10/local": _searches("local", **queries),
        "to-optimum/cifar10/optuna-tpe": _searches("optuna-tpe", **most),
        "to-optimum/cifar100/optuna-tpe": _searches("optuna-tpe", **half),
        "bounded/lat_ms_pi/20%/local": _searches("local", **near),
        "bounded/lat_ms_pi/40%/random": _searches("random", **far),
    }
    text = searches.nas_bench_201(results)
    assert "The table's best: 94.50 % on CIFAR-10, 73.50 % on CIFAR-100." in text
    assert "| `random` | 94.12 ± 0.25 | 94.12 ± 0.25 | 500 |\n| Optuna's TPE (5.0) | 94.12 ± 0.25 |  | 40 |" in text
    assert "| `local` | 75.4 (87.5) |  | 500 |" in text
    # Of two values in the middle one is a run that was stopped: its median is a lower bound too.
    assert "| ≥ 75.4 (87.5); 60% reach it in 100 | ≥ 75.4 (≥ 87.5); 50% reach it in 100 |" in text
    assert "are lower bounds" in text
    assert "| device | bound (share of cells within) | best within | `random` | `local` |" in text
    assert "| pi | 12.9 ms (20%) | 94.50 % |  | 0.13 (40%) |\n| pi | 20 ms (40%) | 95.00 % | 0.13 (100%) |  |" in text
    assert "Made at commit 0123456." in text
    macro = searches.nas_bench_macro({"to-optimum/local": _searches("local", **queries)})
    assert "| searcher | CIFAR-10 | runs |" in macro and "Accuracy after" not in macro and "lower bounds" not in macro


@pytest.mark.parametrize(("shared", "verdict"), [(0.4, "worse"), (0.6, "better")])
def test_figures_say_what_shared_weights_are_worth(searches: ModuleType, shared: float, verdict: str) -> None:
    rankings = {"shared weights": {"kendall": shared}, "params": {"kendall": 0.5}}
    result = {
        "machine": {"device": "a GPU", "torch": "2.11"},
        "training": {"seconds": 270.2, "epochs": 56.7},
        "rank_correlation": {"all": {"cells": 1000, "rankings": rankings}},
        "asked": {"images": 5000},
        "seconds": {"all": 399.2},
    }
    text = searches.supernet_block(result)
    assert f"| shared weights | {shared:.2f} |\n| params | 0.50 |" in text
    assert f"Shared weights rank {verdict} than a plain count of parameters does." in text


def test_figures_read_proposals(figures: ModuleType) -> None:
    proposals = importlib.import_module("propose_figures")
    measures = {
        name: {"measure": name, "grammar": 0.5, "learn": 0.625, "difference_95": [0.1, 0.15], "p_holm": 0.004}
        for name in proposals.MEASURES
    }
    parts = [
        {"by": "decoder", "proposals": n, "parsed": share, "built": share, "new": share}
        for n, share in ((10, 0.9), (30, 0.5))
    ]
    record = {
        "machine": {"cores": 4, "gpu": ""},
        "versions": {"torch": "2"},
        "setting": {"evaluations": 7, "params": 1000, "epochs": 3},
        "comparison": list(measures.values()),
        "runs": [
            {"seed": 0, "generations": [{"by": "grammar", "proposals": 5}, *parts]},
            {"seed": 1, "generations": []},
        ],
        "tuning": {"variants": {"a": "", "b": ""}, "seeds": [100]},
    }
    text = proposals.learn_block(record)
    assert "2 seeds" in text and "Of 40 proposals of the decoder 60% were read as Python" in text
    assert text.count("| 50.0% | 62.5% | +10.0 to +15.0 | 0.004 |") == 5
    assert proposals.propose_sections(ROOT) == {}


def test_figures_read_tasks(figures: ModuleType) -> None:
    tasks = importlib.import_module("evaluation_figures")
    plain = {"mean": 0.25, "stderr": 0.05}
    models = {"parent": plain, "other": plain | {"mean": 0.5, "difference": {"low": 0.1, "high": 0.4}}}
    one = {"models": models, "parent_can": False}
    measures = {"choice": one, "doubt": one, "gain": one | {"groups": {"tokens": {"160": one | {"parent_can": True}}}}}
    record = {"tasks": {"needle": {"measures": measures}}, "machine": {"device": "a CPU"}, "asked": {"items": 9}}
    text = tasks.evaluation_block(record)
    assert "| needle | choice | 25.0% ± 5.0% (cannot) | 50.0% ± 5.0% | 10.0% to 40.0% |" in text
    assert (
        "| needle | gain, nats, 160 tokens | 0.25 ± 0.05 | 0.50 ± 0.05 | 0.10 to 0.40 |" in text and "doubt" not in text
    )
    assert tasks.evaluation_sections(ROOT) == {}
