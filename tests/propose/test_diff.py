import difflib
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from befit.errors import BadProposal
from befit.propose.diff import Edit, apply, is_search_replace, is_unified, search_replace, unified

PARENT = """\
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3)
        self.b = nn.Conv2d(16, 16, 3)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = F.relu(self.b(x))
        return x
"""


def blocks(*changes: tuple[str, str]) -> str:
    return "\n".join(f"<<<<<<< SEARCH\n{old}\n=======\n{new}\n>>>>>>> REPLACE" for old, new in changes)


def reason(edits: Sequence[Edit], parent: str = PARENT) -> str:
    with pytest.raises(BadProposal) as caught:
        apply(edits, parent)
    assert "\n" not in str(caught.value)
    return caught.value.reason


def test_blocks_are_applied_as_they_are_written() -> None:
    told = blocks(
        ("        self.b = nn.Conv2d(16, 16, 3)", "        self.b = nn.Conv2d(16, 32, 3)\n        self.c = nn.ReLU()"),
        ("        x = F.relu(self.b(x))\n", ""),
    )
    want = PARENT.replace("self.b = nn.Conv2d(16, 16, 3)", "self.b = nn.Conv2d(16, 32, 3)\n        self.c = nn.ReLU()")
    edits = search_replace(f"Let me widen it.\n\n{told}\n\nDone.")
    assert [len(one.old) for one in edits] == [1, 2]
    assert apply(edits[:1], PARENT) == want
    # The second block shows an empty line that is not there; what it says is clear all the same.
    assert apply(edits, PARENT) == want.replace("        x = F.relu(self.b(x))\n", "")


@pytest.mark.parametrize(
    ("old", "new", "becomes"),
    [
        ("    self.a = nn.Conv2d(3, 16, 3)", "    self.a = nn.Conv2d(3, 8, 3)", "        self.a = nn.Conv2d(3, 8, 3)"),
        ("return x", "y = x\nreturn y", "        y = x\n        return y"),
        ("            return x", "            if x:\n                return x", "        if x:\n            return x"),
        ("        return x   ", "        return 2 * x", "        return 2 * x"),
    ],
)
def test_other_indentation_is_made_right_where_there_is_one_place(old: str, new: str, becomes: str) -> None:
    changed = apply(search_replace(blocks((old, new))), PARENT)
    gone = next(line for line in PARENT.split("\n") if line.strip() == old.strip())
    assert changed == PARENT.replace(gone, becomes)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ("", "no-diff"),
        (blocks(("        x = F.gelu(self.a(x))", "        pass")), "no-match"),
        (blocks(("x = F.relu(", "x = F.gelu(")), "no-match"),  # part of a line is no line
        (blocks(("", "import math")), "bad-diff"),
        (blocks(("        return x", "        return x")), "no-change"),
        (blocks(("        return x", "        return y"), ("        return y", "        return x")), "no-change"),
        (blocks(("class Net(nn.Module):\n  def __init__(self):", "class Net(nn.Module):")), "no-match"),
    ],
)
def test_what_cannot_be_applied_is_refused_by_name(told: str, why: str) -> None:
    assert reason(search_replace(told)) == why


def test_several_places_are_ambiguous_and_more_lines_help() -> None:
    twice = "a\nb\nc\nb\nd\n"
    assert reason(search_replace(blocks(("b", "x"))), twice) == "ambiguous"
    assert apply(search_replace(blocks(("c\nb", "c\nx"))), twice) == "a\nb\nc\nx\nd\n"
    loose = "  a\n    a\n"  # neither as it is written, both by indentation
    assert reason(search_replace(blocks(("a", "x"))), loose) == "ambiguous"


@pytest.mark.parametrize(
    "told",
    [
        "<<<<<<< SEARCH\na\n=======\nb",
        "<<<<<<< SEARCH\na\n>>>>>>> REPLACE",
        "<<<<<<< SEARCH\na",
        "<<<<<<< SEARCH\na\n=======\nb\n=======\nc\n>>>>>>> REPLACE",
        "<<<<<<< SEARCH\na\n<<<<<<< SEARCH\nb\n=======\nc\n>>>>>>> REPLACE",
    ],
)
def test_incomplete_blocks_are_bad(told: str) -> None:
    with pytest.raises(BadProposal) as caught:
        search_replace(told)
    assert caught.value.reason == "bad-diff"


def test_fences_inside_a_block_are_no_part_of_it() -> None:
    told = (
        "<<<<<<< SEARCH\n```python\n        return x\n```\n=======\n```python\n        return -x\n```\n>>>>>>> REPLACE"
    )
    assert apply(search_replace(told), PARENT) == PARENT.replace("return x", "return -x")


def test_a_line_number_chooses_between_equal_places_and_nothing_else() -> None:
    parent = "a\nb\na\nb\na\nb\n"
    assert apply(unified("@@ -3,2 +3,2 @@\n a\n-b\n+x\n"), parent) == "a\nb\na\nx\na\nb\n"
    moved = "@@ -1,2 +1,3 @@\n a\n-b\n+x\n+y\n@@ -3,2 +4,2 @@\n a\n-b\n+z\n"
    assert apply(unified(moved), parent) == "a\nx\ny\na\nz\na\nb\n"
    assert reason(unified("@@ -4,2 +4,2 @@\n a\n-b\n+x\n"), parent) == "ambiguous"
    assert reason(unified("@@\n a\n-b\n+x\n"), parent) == "ambiguous"
    assert apply(unified("@@ -77,3 +1,9 @@\n-self.b\n+self.c\n"), "self.a\nself.b\n") == "self.a\nself.c\n"


def test_lines_can_be_added_where_the_diff_says() -> None:
    assert apply(unified("@@ -0,0 +1,2 @@\n+x\n+y\n"), "a\nb\n") == "x\ny\na\nb\n"
    assert apply(unified("@@ -2,0 +3 @@\n+x\n"), "a\nb\n") == "a\nb\nx\n"
    assert reason(unified("@@ -9,0 +9 @@\n+x\n"), "a\n") == "bad-diff"
    assert reason(unified("@@\n+x\n"), "a\n") == "bad-diff"


@pytest.mark.parametrize(
    "told",
    [
        "@@ -1,5 +1,5 @@\n a\n-b\n+x\nand so on",
        "@@ -1,2 +1,2 @@\n+x",
        "--- a\n+++ b\n@@ -1 +1 @@\n-a\n+b\n--- c\n+++ d\n@@ -1 +1 @@\n-a\n+b\n",
    ],
)
def test_lines_that_are_none_of_a_diff_are_bad(told: str) -> None:
    with pytest.raises(BadProposal) as caught:
        unified(told)
    assert caught.value.reason == "bad-diff"


def test_prose_may_follow_a_complete_hunk() -> None:
    assert apply(unified("@@ -1,2 +1,2 @@\n a\n-b\n+x\n\nThis is better.\n"), "a\nb\n") == "a\nx\n"
    # A hunk that goes on after what its header counts is one whose header is wrong.
    assert apply(unified("@@ -1,2 +1,2 @@\n a\n-b\n+x\n\n-c\n"), "a\nb\n\nc\n") == "a\nx\n\n"
    assert apply(unified("@@ -1,2 +1,2 @@\n a\n-b\n+x\nThis is better.\n"), "a\nb\n") == "a\nx\n"


LINES = st.lists(st.sampled_from(["", "a", "b", "    a", "    b", "        c", "-x", "+y", "@", " "]), max_size=14)


@given(LINES, LINES, st.integers(0, 3))
@settings(max_examples=300)
def test_what_difflib_writes_turns_the_old_file_into_the_new(old: list[str], new: list[str], context: int) -> None:
    told = "\n".join(difflib.unified_diff(old, new, "a", "b", lineterm="", n=context))
    if old == new:
        assert reason(unified(told), "\n".join(old)) == "no-diff"
        return
    parent = "".join(f"{line}\n" for line in old)
    assert apply(unified(told), parent) == "".join(f"{line}\n" for line in new)


@given(LINES, st.data())
@settings(max_examples=200)
def test_a_block_is_applied_to_its_one_place_or_refused(lines: list[str], data: st.DataObject) -> None:
    lines = [line for line in lines if line.strip()] or ["a"]
    begin = data.draw(st.integers(0, len(lines) - 1))
    end = data.draw(st.integers(begin + 1, len(lines)))
    old, parent = lines[begin:end], "\n".join(lines) + "\n"
    exact = [place for place in range(len(lines)) if lines[place : place + len(old)] == old]
    edits = search_replace(blocks(("\n".join(old), "new")))
    if len(exact) == 1:
        assert apply(edits, parent) == "\n".join([*lines[:begin], "new", *lines[end:]]) + "\n"
    else:
        assert reason(edits, parent) == "ambiguous"


@given(st.text(st.sampled_from("<>=@-+ \n\rSEARCHPLx1,`")) | st.text(), st.text() | LINES.map("\n".join))
@settings(max_examples=300)
def test_no_text_raises_anything_else(told: str, parent: str) -> None:
    for read in (search_replace, unified):
        found = ""
        try:
            apply(read(told), parent)
        except BadProposal as error:
            found = error.reason
        assert found in ("", "no-diff", "bad-diff", "no-match", "ambiguous", "no-change")
    assert isinstance(is_search_replace(told), bool) and isinstance(is_unified(told), bool)
