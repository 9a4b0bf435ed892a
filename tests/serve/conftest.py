"""A vLLM without a model, for everything around it."""

import os
from pathlib import Path

import pytest

FAKE = Path(__file__).parent / "fake"


@pytest.fixture
def fake_vllm(monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process, and those that it starts, find a vLLM that gives every request its tokens at once."""
    monkeypatch.syspath_prepend(str(FAKE))
    places = [str(FAKE), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))
    return FAKE
