"""What every test runs under: no network, one thread, fixed seeds, and no silent skips.

A skip hides a test. Only those marked `gpu`, `vllm` or `data` may be skipped (their hardware, engine or published data may be
absent); with `--strict-skips`, or where the environment says `CI=true`, any other skip fails the run.
"""

import importlib.util
import os
import random
import sys
import tempfile
from collections.abc import Generator

import numpy as np
import pytest
from hypothesis import settings

from published import DATA

MAY_SKIP = ("gpu", "vllm", "data")

# Before anything imports torch, tokenizers or huggingface_hub: they read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Code that comes with checkpoints is copied here: one place for the process, since Python remembers where the package lies.
_MODULES = tempfile.TemporaryDirectory(prefix="befit-modules-")
os.environ["HF_MODULES_CACHE"] = _MODULES.name

# The same examples on every run, and no deadline: a busy machine must not fail a correct test.
settings.register_profile("befit", derandomize=True, deadline=None)
settings.load_profile("befit")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--strict-skips",
        action="store_true",
        default=os.environ.get("CI", "").lower() in ("true", "1"),
        help="fail on any skipped test that is not marked gpu, vllm or data (default where CI=true)",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not _cuda():
        pytest.skip("needs a CUDA device")
    if item.get_closest_marker("vllm") and importlib.util.find_spec("vllm") is None:
        pytest.skip("needs vLLM")
    if item.get_closest_marker("data") and not DATA.is_dir():
        pytest.skip(f"needs published data: there is no folder {DATA} (name another in BEFIT_DATA)")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    allowed = any(item.get_closest_marker(name) for name in MAY_SKIP)
    expected_failure = getattr(report, "wasxfail", None) is not None
    if report.skipped and item.config.getoption("--strict-skips") and not allowed and not expected_failure:
        _fail(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A module that skips itself (`importorskip`) hides all its tests: mark them and import inside instead."""
    report = yield
    if report.outcome == "skipped" and collector.config.getoption("--strict-skips"):
        _fail(report)
    return report


def _fail(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = (
        f"{reason}\nNot allowed with --strict-skips (or CI=true): only gpu, vllm and data tests may be skipped."
    )


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """The same random numbers for a test whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)
