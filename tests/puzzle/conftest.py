"""Libraries of tiny parents, for whoever tests what is made from a library."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests import tiny

from befit.arch.decoder_space import DecoderSpace
from befit.lm.child import arch_of
from befit.lm.families import family_of
from befit.puzzle.library import Library
from befit.puzzle.local import LocalConfig, build_library

FREE = LocalConfig(epochs=0)
"""Training-free weights."""
ATTENTION = ("all", "1", "/2", "window=5", "linear", "noop")
FFN = ("100", "50", "linear", "noop")

MakeLibrary = Callable[..., Library]


def empty_library(folder: Path, family: str = "llama", layers: int = 3) -> Library:
    """A tiny parent and its space, without files."""
    parent = tiny.parent(family, layers)
    plain = tiny.config(family, layers)
    shape = family_of(plain).describe(plain)
    assert arch_of(parent.config) == shape.arch
    space = DecoderSpace(shape=shape, attention=ATTENTION, ffn=FFN)
    return Library(parent=parent, space=space, family=family_of(plain), folder=folder)


@pytest.fixture
def make_library(tmp_path: Path) -> MakeLibrary:
    """`make_library(family, layers)`: a training-free library."""

    def make(family: str = "llama", layers: int = 3) -> Library:
        library = empty_library(tmp_path / f"library-{family}-{layers}", family, layers)
        build_library(tiny.tokens(2), FREE, library=library)
        return library

    return make
