"""The rules of the house, read from the source: who may import whom, and what code here looks like.

Each rule is a function from source text to offences, so that it can be shown to catch what it forbids.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import befit

SOURCE = Path(__file__).parents[1] / "src" / "befit"
TESTS = Path(__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

RANK = {
    "errors": 0,
    "budget": 1,
    "command": 1,
    "progress": 1,
    "rundir": 1,
    "arch": 2,
    "cost": 3,
    "lm": 4,
    "vision": 4,
    "export": 5,
    "report": 5,
    "serve": 6,
    "search": 6,
    "puzzle": 7,
    "elastic": 7,
    "oneshot": 7,
    "propose": 7,
    "loading": 8,
    "cli": 8,
    "__main__": 9,
    "__init__": 9,
}
"""A part of the package imports itself and parts of a lower rank, nothing else."""

WITHOUT_TORCH = (
    "__init__",
    "errors",
    "budget",
    "arch/cell",
    "arch/decoder",
    "arch/member",
    "arch/mobile",
    "cost/formats",
    "cost/named_devices",
    "cost/workload",
    "cost/count",
    "cost/images",
    "cost/image_latency",
    "cost/image_terms",
    "cost/target",
    "propose/calls",
    "propose/contract",
    "propose/diversity",
    "propose/fingerprint",
    "propose/funnel",
    "propose/grammar",
    "propose/inference",
    "propose/layout",
    "propose/lemur",
    "propose/lemur_files",
    "propose/lemur_rows",
    "propose/names",
    "propose/network",
    "propose/nodes",
    "propose/policy",
    "propose/rendering",
    "propose/signatures",
    "propose/simplify",
    "propose/statistics",
    "propose/tree",
    "puzzle/solve",
    "elastic/space",
    "elastic/landing",
    "elastic/budgets",
    "elastic/baselines",
)
"""Modules that must import without torch, so that solving and pricing start at once and run anywhere."""

TRAVELLING = ("modeling_befit", "configuration_decilm")
"""Modules that travel in a checkpoint, where they find each other by relative imports."""

MAX_FILE_LINES = 400
MAX_BODY_LINES = 70
VAGUE_NAMES = {"util", "utils", "misc", "common", "helper", "helpers", "manager", "managers"}

TESTED_IN = {
    "__main__.py": "test_cli.py",
    "arch/task.py": "vision/test_cell.py",
    "cli/images.py": "search/test_pipeline.py",
    "cli/language.py": "test_cli.py",
    "cli/runs.py": "test_cli.py",
    "cli/shown.py": "test_cli.py",
    "cost/workload.py": "test_budget.py",
    "elastic/config.py": "elastic/test_pipeline.py",
    "elastic/job.py": "elastic/test_pipeline.py",
    "elastic/summary.py": "elastic/test_pipeline.py",
    "oneshot/supernet.py": "oneshot/test_shared_cell.py",
    "search/named.py": "search/test_sampler.py",
    "cli/sandbox.py": "propose/sandbox/test_trial.py",
    "propose/sandbox/hostile_gpu.py": "propose/sandbox/test_gpu.py",
    "propose/sandbox/nvml.py": "propose/sandbox/test_gpu.py",
    "propose/calls.py": "propose/test_tree.py",
    "propose/database.py": "propose/test_records.py",
    "propose/finish.py": "propose/test_loop.py",
    "propose/fitting.py": "propose/test_judge.py",
    "propose/job.py": "propose/test_loop.py",
    "propose/summary.py": "propose/test_loop.py",
    "propose/inspection.py": "propose/test_gate.py",
    "propose/lemur_files.py": "propose/test_lemur.py",
    "propose/lemur_rows.py": "propose/test_lemur.py",
    "propose/names.py": "propose/test_tree.py",
    "propose/nodes.py": "propose/test_tree.py",
    "propose/rendering.py": "propose/test_grammar.py",
    "propose/simplify.py": "propose/test_tree.py",
    "propose/sandbox/candidate.py": "propose/sandbox/test_box.py",
    "propose/sandbox/confine.py": "propose/sandbox/test_trial.py",
    "propose/sandbox/forkserver.py": "propose/sandbox/test_box.py",
    "propose/sandbox/hostile.py": "propose/sandbox/test_trial.py",
    "propose/sandbox/kernel.py": "propose/sandbox/test_trial.py",
    "propose/sandbox/landlock.py": "propose/sandbox/test_trial.py",
    "propose/sandbox/limits.py": "propose/sandbox/test_box.py",
    "propose/sandbox/seccomp.py": "propose/sandbox/test_trial.py",
    "propose/sandbox/tasks.py": "propose/sandbox/test_box.py",
    "propose/sandbox/watch.py": "propose/sandbox/test_box.py",
    "puzzle/baselines.py": "puzzle/test_choose.py",
    "puzzle/job.py": "puzzle/test_pipeline.py",
    "puzzle/library.py": "puzzle/test_local.py",
    "puzzle/record.py": "puzzle/test_pipeline.py",
    "report/arms.py": "report/test_proposals.py",
    "report/drawing.py": "report/test_search.py",
    "report/finalists.py": "report/test_search.py",
    "report/learned.py": "report/test_search.py",
    "report/oneshot.py": "report/test_search.py",
    "report/progress.py": "report/test_search.py",
    "report/trials.py": "report/test_search.py",
    "report/yields.py": "report/test_proposals.py",
    "serve/vllm_worker.py": "serve/test_engine.py",
    "puzzle/served.py": "serve/test_table.py",
    "cli/serving.py": "serve/test_bench.py",
    "loading.py": "search/test_pipeline.py",
    "oneshot/cut.py": "oneshot/test_pipeline.py",
    "search/config.py": "search/test_pipeline.py",
    "search/coordinate.py": "search/test_study.py",
    "search/find.py": "search/test_pipeline.py",
    "search/finish.py": "search/test_pipeline.py",
    "search/job.py": "search/test_pipeline.py",
    "search/pool.py": "search/test_workers.py",
    "search/spec.py": "search/test_study.py",
    "search/summary.py": "search/test_pipeline.py",
    "propose/proposal.py": "propose/test_gate.py",
    "vision/blueprint.py": "vision/test_cell.py",
    "lm/configuration_decilm.py": "export/test_vllm.py",
    "lm/modeling_decilm.py": "export/test_vllm.py",
    "export/card.py": "export/test_hf.py",
    "export/gguf_tokenizer.py": "export/test_gguf.py",
    "export/language.py": "export/test_vllm.py",
    "lm/llama.py": "lm/test_families.py",
    "lm/mistral.py": "lm/test_families.py",
    "lm/modeling_befit_hybrid.py": "lm/test_modeling_befit.py",
    "lm/nemotron_h.py": "lm/test_families.py",
    "lm/qwen2.py": "lm/test_families.py",
    "lm/shapes.py": "lm/test_pretrain.py",
    "lm/qwen3.py": "lm/test_families.py",
    "lm/tasks/named.py": "lm/tasks/test_item.py",
    "vision/arrays.py": "vision/test_data.py",
    "vision/pixels.py": "vision/test_data.py",
    "vision/sources.py": "vision/test_data.py",
}
"""Modules of src/befit that have no test file of their own name, and the file under tests/ that tests them."""


def _name(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def _part(path: Path) -> str:
    return Path(_name(path).split("/", maxsplit=1)[0]).stem


def _imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every `befit.…` module that is imported, wherever the statement stands, as (line, part)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            # The files that travel in a checkpoint find each other there, where there is no befit.
            names = ["befit.lm" if node.module in TRAVELLING else "befit.<relative import>"]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [f"befit.{alias.name}" for alias in node.names] if module == "befit" else [module]
        else:
            continue
        for name in names:
            if name == "befit" or name.startswith("befit."):
                yield node.lineno, [*name.split("."), "__init__"][1]


def import_offences(source: str, part: str) -> list[str]:
    """Imports of `source`, a module of `part`, that go sideways or up."""
    found = []
    for line, other in _imported(ast.parse(source)):
        if other != part and RANK.get(other, 99) >= RANK[part]:
            found.append(f"line {line}: {part} imports befit.{other}")
        elif part == "report" and other != "report":
            found.append(f"line {line}: report draws plain values and imports nothing of befit, not even {other}")
    return found


def star_imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            yield f"line {node.lineno}: star import"


def globals_(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield f"line {node.lineno}: global statement"


def prints(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield f"line {node.lineno}: print outside cli"


def broad_excepts(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            if any(one is None or ast.unparse(one) in ("Exception", "BaseException") for one in caught):
                yield f"line {node.lineno}: bare or broad except"


def missing_docstring(tree: ast.Module) -> Iterator[str]:
    if not ast.get_docstring(tree):
        yield "no module docstring"


def long_functions(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            if lines > MAX_BODY_LINES:
                yield f"line {node.lineno}: {node.name} has {lines} lines, at most {MAX_BODY_LINES}"


Rule = Callable[[ast.Module], Iterator[str]]

BROKEN: dict[Rule, str] = {
    star_imports: "from math import *",
    globals_: "def f():\n    global x\n    x = 1",
    prints: "def f():\n    print(1)",
    broad_excepts: "try:\n    f()\nexcept (ValueError, Exception):\n    g()",
    missing_docstring: "x = 1",
    long_functions: "def f():\n    '''Idea.'''\n" + "    f()\n" * (MAX_BODY_LINES + 1),
}
"""Each rule, with source text that it must refuse."""


def vague(name: str) -> bool:
    return not VAGUE_NAMES.isdisjoint(word for part in Path(name).with_suffix("").parts for word in part.split("_"))


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_imports_go_down_only(path: Path) -> None:
    part = _part(path)
    assert part in RANK, f"befit.{part} is a new part of the package: give it a rank in {__file__}"
    assert not import_offences(path.read_text(), part)


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_shape_of_code(path: Path) -> None:
    tree = ast.parse(path.read_text())
    rules = [rule for rule in BROKEN if not (rule is prints and _part(path) == "cli")]
    assert not [offence for rule in rules for offence in rule(tree)]
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES
    assert not vague(_name(path)), "name a module by what it holds"


@pytest.mark.parametrize(("rule", "source"), BROKEN.items(), ids=lambda item: getattr(item, "__name__", ""))
def test_each_rule_catches_its_offence(rule: Rule, source: str) -> None:
    assert list(rule(ast.parse(source)))


def test_each_import_offence_is_caught() -> None:
    assert import_offences("from befit.puzzle.solve import solve", "cost")
    assert import_offences("def f():\n    import befit.lm.family", "arch")
    assert import_offences("from befit import puzzle", "lm")
    assert import_offences("import befit", "puzzle")
    assert import_offences("from . import score", "puzzle")
    assert import_offences("from befit.lm.family import Family", "vision")
    assert import_offences("from befit.errors import BadData", "report")
    assert not import_offences(
        "import re\nfrom befit.puzzle.solve import solve\nfrom befit.errors import BadData", "puzzle"
    )
    assert not import_offences("from befit.report.page import page", "report")
    assert vague("lm/cache_utils.py") and vague("misc/norm.py") and not vague("lm/sort.py")


def test_the_order_is_the_documented_one() -> None:
    documented = "cli → puzzle|elastic|oneshot → search → export|report → lm|vision → cost → arch → budget → errors"
    assert documented in (TESTS.parent / "docs" / "index.md").read_text()
    steps = [re.split(r"\|", step) for step in documented.split(" → ")]
    for upper, lower in pairwise(steps):
        assert min(RANK[name] for name in upper) > max(RANK[name] for name in lower)


def test_public_names_are_found_where_they_are_said_to_be() -> None:
    assert befit.__all__ == sorted(befit.__all__, key=lambda name: (name.islower(), name))
    for name in befit.__all__:
        assert getattr(befit, name).__name__ == name
    with pytest.raises(AttributeError, match=r"public names: .*ElasticConfig"):
        getattr(befit, "Elastic")  # noqa: B009 - the name is wrong on purpose, and known to be to a type checker


def test_values_prices_and_the_solver_need_no_torch() -> None:
    names = [name for name in WITHOUT_TORCH if (SOURCE / f"{name}.py").exists()]
    modules = ["befit" if name == "__init__" else "befit." + name.replace("/", ".") for name in names]
    program = (
        "import importlib, sys\n"
        f"for name in {modules}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, f'{name} imports torch'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", [path for path in FILES if path.stem != "__init__"], ids=_name)
def test_every_module_has_its_test_file(path: Path) -> None:
    name = Path(_name(path))
    own = str(name.with_name(f"test_{name.name}"))
    elsewhere = TESTED_IN.get(name.as_posix())
    assert (TESTS / (elsewhere or own)).exists(), f"src/befit/{name} needs tests/{own}"
    assert not (elsewhere and (TESTS / own).exists()), f"tests/{own} exists: take {name} out of TESTED_IN"


def test_the_list_of_modules_tested_elsewhere_is_not_stale() -> None:
    assert {name for name in TESTED_IN if not (SOURCE / name).exists()} == set()


SKIPS = """
import pytest

@pytest.mark.gpu
def test_marked():
    pytest.skip("no device")

def test_unmarked():
    pytest.skip("no time")

@pytest.mark.skip(reason="no mood")
def test_decorated():
    pass

@pytest.mark.xfail(reason="known")
def test_known():
    assert False
"""


def test_only_marked_tests_may_be_skipped(tmp_path: Path) -> None:
    for name in ("conftest.py", "published.py"):
        shutil.copy(TESTS / name, tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: a device\n    vllm: an engine\n")
    (tmp_path / "test_skips.py").write_text(SKIPS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--strict-skips"]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert "1 failed, 1 skipped, 1 xfailed, 1 error" in done.stdout
