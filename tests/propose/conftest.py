"""One sandbox for all tests of proposals that need an ordinary one: a candidate is a process of its own in any case."""

from collections.abc import Iterator

import pytest

from befit.propose import fitting
from befit.propose.sandbox import tasks
from befit.propose.sandbox.box import Sandbox


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(warm=(tasks.warm, fitting.warm)) as opened:
        yield opened
