from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from befit.arch.space import Choice, Space
from befit.errors import BadData
from befit.propose.answer import LARGEST, REASONS, Answer, Form, blocks, read, without_thoughts
from befit.propose.models import ANSWERED, Completion, Finish

NET = """\
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, in_shape, out_shape, prm, device):
        super().__init__()
        self.head = nn.LazyLinear(out_shape[0])

    def forward(self, x):
        return self.head(x.flatten(1))
"""
BETTER = NET.replace("self.head(x", "-self.head(x")
SPACE = Space({"width": Choice(16, 32), "mixer": Choice("conv", "pool")})
GENOME = '{"width": 16, "mixer": "pool"}'
CHANGE = (
    "<<<<<<< SEARCH\n        return self.head(x.flatten(1))\n=======\n"
    "        return -self.head(x.flatten(1))\n>>>>>>> REPLACE"
)
HUNK = (
    "--- a/net.py\n+++ b/net.py\n@@ -10,2 +10,2 @@\n     def forward(self, x):\n"
    "-        return self.head(x.flatten(1))\n+        return -self.head(x.flatten(1))\n"
)


def said(text: str, form: Form = "network", finish: Finish = "stop") -> Answer:
    return read(Completion(text=text, finish=finish), form, parent=NET, space=SPACE)


def fenced(source: str, language: str = "python") -> str:
    return f"```{language}\n{source}```\n"


WHOLE = {
    "one block": fenced(NET),
    "prose around it": f"Here is a net.\n\n{fenced(NET)}\nIt is good: `Net` has a head.",
    "no language": fenced(NET, ""),
    "another language's name": fenced(NET, "py3"),
    "tildes": f"~~~python\n{NET}~~~",
    "never closed": f"```python\n{NET}",
    "windows": fenced(NET).replace("\n", "\r\n"),
    "in a list": "1. Here:\n" + "".join(f"   {line}\n" if line else "\n" for line in fenced(NET).split("\n")),
    "no block": NET,
    "no block, prose around": f"Here is the code:\n\n{NET}\nI hope it helps.\n\nIt has one layer.",
    "after a draft": fenced(BETTER) + "Wait, better:\n" + fenced(NET),
    "before an example of use": fenced(NET) + "Use it:\n" + fenced("net = Net((1, 3, 8, 8), (10,), {}, 'cpu')\n"),
    "before a shell command": fenced(NET) + fenced("pip install torch\n", "bash"),
    "before a broken repetition": fenced(NET) + fenced("class Net(nn.Module):\n    ...(\n"),
    "after a thought": f"<think>\nA draft: {fenced(BETTER)}\n</think>\n{fenced(NET)}",
    "after a thought that the template began": f"I draft {fenced(BETTER)} so.\n</think>\n{fenced(NET)}",
    "after two thoughts": f"<thinking>a</thinking>{fenced(BETTER)}<Think>b</Think>\n{fenced(NET)}",
    "before a thought without end": f"{fenced(NET)}\n<think>but maybe {fenced(BETTER)}",
    "inside another block": f"```markdown\nThe net:\n{fenced(NET)}```",
    "after a block that was never closed": f"```python\nx = 1\nNow the net:\n{fenced(NET)}",
    "a longer fence": f"````python\n{NET}````",
    "in a tag": f"<hp>{{'lr': 0.1}}</hp>\n<nn>\n{NET}</nn>",
}


@pytest.mark.parametrize("name", WHOLE)
def test_the_network_is_found(name: str) -> None:
    found = said(WHOLE[name])
    assert (found.reason, found.form) == ("", "network")
    assert found.source == NET


def test_fences_and_form_feeds_in_strings_belong_to_the_code() -> None:
    source = NET + 'DOC = """\n~~~\nx\n```` y\n"""\nFEED = "\x0c\u2028"\n'
    assert said(f"```python\n{source}```").source == source


JUNK = {
    "empty": ["", " \n\t", "<think>all of it", "<think>x</think> \n"],
    "no-code": ["I cannot do that.", "class net", "Net is a class", "``` ```", "```python\n```", "<nn>", "{}" * 50],
    "too-large": [fenced(NET + f"# {'x' * LARGEST}\n"), NET + f"# {'x' * LARGEST}\n"],
}


@pytest.mark.parametrize(("reason", "text"), [(reason, text) for reason, texts in JUNK.items() for text in texts])
def test_junk_is_refused_by_name(reason: str, text: str) -> None:
    found = said(text)
    assert found.reason == reason
    assert found.said and "\n" not in found.said and not found.source


@pytest.mark.parametrize(
    "source", ["class Net(nn.Module):\n    def (\n", "print('no net')\n", "class Network:\n    pass\n", "x = '\0'\n"]
)
def test_code_that_is_wrong_is_left_to_the_gate_which_says_how(source: str) -> None:
    assert said(fenced(source)).source == source


CUT = {
    "network": [f"```python\n{NET}", f"```python\n{NET[:200]}", NET, NET[:200], "Let me thi", "<think>so", "",
                f"{fenced(NET)}```py\nimp"],
    "search-replace": [CHANGE, CHANGE[:60], CHANGE[:-8], "I will", ""],
    "unified": [HUNK, HUNK[:-20], "I will", ""],
    "genome": [GENOME[:-3], "I will", ""],
}  # fmt: skip


@pytest.mark.parametrize(("form", "text"), [(form, text) for form, texts in CUT.items() for text in texts])
def test_an_answer_that_was_cut_off_is_truncated(form: Form, text: str) -> None:
    assert said(text, form, "length").reason == "truncated"


def test_an_answer_that_was_complete_before_the_cut_counts() -> None:
    assert said(f"{fenced(NET)}And now I expl", finish="length").source == NET
    assert said(f"{GENOME} is bes", "genome", "length").arch is not None


CHANGES: dict[str, tuple[Form, str]] = {
    "block": ("search-replace", CHANGE),
    "block in a fence": ("search-replace", f"I negate it.\n{fenced(CHANGE + chr(10), 'diff')}Done."),
    "hunk": ("unified", HUNK),
    "hunk in a fence": ("unified", f"I negate it.\n\n```diff\n{HUNK}```\nDone - really.\n+ 1"),
    "hunk in a fence without end": ("unified", f"```diff\n{HUNK}"),
    "thought first": ("unified", f"<think>{CHANGE.replace('-self', '+self')}</think>{HUNK}"),
    "windows": ("search-replace", CHANGE.replace("\n", "\r\n")),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("wanted", ["search-replace", "unified"])
def test_changes_are_applied_whichever_notation_was_asked_for(name: str, wanted: Form) -> None:
    form, text = CHANGES[name]
    found = said(text, wanted)
    assert (found.form, found.source, found.reason) == (form, BETTER, "")


def test_the_whole_file_may_stand_for_changes() -> None:
    found = said(fenced(BETTER), "unified")
    assert (found.form, found.source) == ("network", BETTER)
    assert said(fenced(NET), "unified").reason == "no-change"


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("no-diff", "I would not change it."),
        ("no-diff", fenced("x = 1\n")),
        ("bad-diff", CHANGE.replace("=======", "")),
        ("bad-diff", HUNK.replace("-        return", "x       return")),
        ("no-match", CHANGE.replace("x.flatten(1))\n====", "x.flatten(2))\n====")),
        ("no-match", HUNK.replace("-        return self", "-        return x")),
        ("no-change", CHANGE.replace("-self", "self")),
        ("too-large", CHANGE + "x" * LARGEST),
    ],
)
def test_changes_that_cannot_be_made_are_refused_by_name(reason: str, text: str) -> None:
    assert said(text, "search-replace").reason == reason
    assert reason in REASONS


def test_a_genome_is_an_arch_of_the_space_or_refused() -> None:
    for text in (GENOME, fenced(GENOME, "json"), f"<think>{{}}</think>I take {{wide}}: {GENOME}.", f"```\n{GENOME}"):
        found = said(text, "genome")
        assert found.arch == SPACE.arch({"width": 16, "mixer": "pool"}) and not found.reason
    assert said("wide", "genome").reason == "no-genome"
    refused = said(GENOME.replace("16", "17"), "genome")
    assert refused.reason == "bad-genome" and "[16, 32]" in refused.said


def test_a_call_without_an_answer_keeps_its_name() -> None:
    for finish in get_args(Finish):
        if finish not in ("stop", "length"):
            found = read(Completion(finish=finish, said="gone", text=NET), "network")
            assert (found.reason, found.said) == (finish, "gone")
            assert finish in REASONS
    assert set(get_args(Finish)) >= ANSWERED
    assert len(set(REASONS)) == len(REASONS)


def test_what_a_form_needs_must_be_given() -> None:
    with pytest.raises(BadData, match="parent"):
        read(Completion(text="x"), "unified")
    with pytest.raises(BadData, match="space"):
        read(Completion(text="x"), "genome")


def test_thoughts_and_blocks() -> None:
    assert without_thoughts("a<think>b</think>c<think>d") == "ac"
    assert without_thoughts("a</think>b</think>c") == "b</think>c"
    assert without_thoughts("<think>a<think>b</think>c") == "c"
    found = blocks("```python\na\n```\n~~~\nb\n```\nc\n")
    assert [(one.text, one.closed) for one in found] == [("a\n", True), ("b\n```\nc\n", False)]


PIECES = [
    *(
        "```python\n",
        "```\n",
        "~~~",
        NET,
        BETTER,
        CHANGE,
        HUNK,
        GENOME,
        "<think>",
        "</think>",
        "class Net",
        "@@ -1 +1 @@\n",
    ),
    *("<<<<<<< SEARCH\n", "=======\n", ">>>>>>> REPLACE\n", "\r\n", "{", "}", "import x\n\n", "<nn>", "</nn>", "   "),
]


@given(
    st.lists(st.sampled_from(PIECES) | st.text(max_size=20), max_size=8).map("".join),
    st.sampled_from(get_args(Form)),
    st.sampled_from(get_args(Finish)),
)
@settings(max_examples=250)
def test_no_text_raises(text: str, form: Form, finish: Finish) -> None:
    found = said(text, form, finish)
    assert found.reason in ("", *REASONS)
    assert bool(found.reason) == (not found.source and found.arch is None) == bool(found.said)
    assert "\n" not in found.said


def test_hostile_texts_are_read_in_linear_time() -> None:
    for piece in (
        "<think>",
        "</think>",
        "```",
        "```\n",
        "```python\n",
        "{",
        '{"a":',
        "<nn>",
        "class Net\n",
        "\n\n",
        "(",
        "@@\n",
    ):
        for form in get_args(Form):
            found = said(piece * (LARGEST // len(piece)), form)
            assert found.reason or found.source
