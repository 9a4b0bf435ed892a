"""What the first rung reads and what it does not, and LEMUR's own key."""

import hashlib

import pytest

from befit.errors import BadProposal
from befit.propose.layout import layout_key, lemur_md5

CODE = "if x:\n    y = f(1, 'a b')  # so it is\n    z = 2\n"


@pytest.mark.parametrize(
    "other",
    [
        CODE.replace("    ", "\t"),
        CODE.replace("\n", "\r\n"),
        CODE.replace("f(1, ", "f (\n1,\\\n"),
        CODE.replace("# so it is", "#so  it is"),
        "\n\n" + CODE + "\n\n",
        CODE.rstrip("\n"),
    ],
)
def test_the_same(other: str) -> None:
    assert layout_key(other) == layout_key(CODE)


@pytest.mark.parametrize(
    "other",
    [
        CODE.replace("    z", "z"),
        CODE.replace("a b", "ab"),
        CODE.replace("'a b'", '"a b"'),
        CODE.replace("  # so it is", ""),
        CODE.replace("1,", "1"),
    ],
)
def test_different(other: str) -> None:
    assert layout_key(other) != layout_key(CODE)


def test_blanks_inside_strings_of_several_lines_and_f_strings() -> None:
    for a, b in (("'''a\n  b'''", "'''a\n b'''"), ("f'{x} {y}'", "f'{x}{y}'"), ("f'{x!r:>{w}} a'", "f'{x!r:>{w}}a'")):
        assert layout_key(f"x = {a}\n") != layout_key(f"x = {b}\n")
        assert layout_key(f"x = {a}\n") == layout_key(f"x  =  {a}")


def test_names_do_not_run_together() -> None:
    assert layout_key("not_x = 1\n") != layout_key("not_x = 1\n".replace("_", " = "))
    assert layout_key("a = b if c else d\n") != layout_key("a = bif\n")


def test_lemur_md5() -> None:
    assert lemur_md5(" a\tb\n c") == hashlib.md5(b"abc").hexdigest()


@pytest.mark.parametrize("text", ["x = (", "'''", "if x:\n    y\n  z"])
def test_no_python(text: str) -> None:
    with pytest.raises(BadProposal):
        layout_key(text)
