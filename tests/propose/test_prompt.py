import ast
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from befit.arch.cell import cell_space
from befit.errors import BadData
from befit.propose import answer, diff
from befit.propose.answer import Form
from befit.propose.archive import Scored, Shown
from befit.propose.contract import contract_text
from befit.propose.models import Completion, Message
from befit.propose.prompt import (
    EXAMPLE_BLOCK,
    EXAMPLE_HUNK,
    QUOTED,
    Prompt,
    PromptConfig,
    Task,
    again,
    build,
    estimate,
    fenced,
    stripped,
)

SPACE = cell_space()
TASK = Task(dataset="digits", images=(1, 8, 8), classes=10, training="One epoch of SGD.", budget="params<=2M")
SOURCE = '''\
"""A network."""
import torch
from torch import nn  # the layers


def supported_hyperparameters():
    return {"lr"}


class Net(nn.Module):
    """It has one layer of {width}."""

    def __init__(self, in_shape, out_shape, prm, device):
        """Make it."""
        super().__init__()
        # a layer
        self.width = {width}
        self.head = nn.LazyLinear(out_shape[0])

    def train_setup(self, prm):
        self.optimizer = torch.optim.SGD(self.parameters(), lr=prm["lr"])

    def learn(self, train_data):
        """Train."""

    def forward(self, x):
        return self.head(x.flatten(1))
'''


def net(number: int, form: Form = "network", accuracy: float | None = None, note: str = "") -> Scored:
    genome = json.dumps(SPACE.sample(random.Random(number)).to_json())
    text = genome if form == "genome" else SOURCE.replace("{width}", str(number))
    return Scored(
        number=number, key=str(number), text=text, dataset="digits", accuracy=accuracy or 0.9 - number / 100, note=note
    )


def shown(count: int = 3, form: Form = "network", parent: bool = True) -> Shown:
    return Shown(parent=net(50, form) if parent else None, examples=tuple(net(number, form) for number in range(count)))


def made(form: Form = "network", *, count: int = 3, notes: Sequence[str] = (), **settings: object) -> Prompt:
    config = replace(PromptConfig(form=form), **settings)  # pyright: ignore[reportArgumentType]
    return build(TASK, contract_text(), shown(count, form), config, space=SPACE, notes=notes)


def test_a_prompt_says_all_there_is_to_know() -> None:
    prompt = made(notes=["widths above 64 were over budget", "a network of two\nlayers was a duplicate"])
    assert [one.role for one in prompt.messages] == ["system", "user"]
    text = prompt.messages[1].content
    for part in (
        "the images of digits (1 x 8 x 8) into 10 classes. One epoch of SGD.",
        "params<=2M",
        contract_text().rstrip(),
        "- widths above 64 were over budget\n- a network of two layers was a duplicate",
        "an accuracy of 90.0%",
        "The network to improve, with an accuracy of 40.0%",
        "```python block",
    ):
        assert part in text
    assert prompt.examples == (0, 1, 2) and not prompt.dropped
    places = [text.index(f"self.width = {number}\n") for number in (2, 1, 0, 50)]
    assert places == sorted(places), "the best example stands nearest to the question"
    assert prompt.tokens == sum(estimate(one.content) + 4 for one in prompt.messages) <= 8192


def test_a_prompt_is_the_same_each_time() -> None:
    assert made() == made()


@pytest.mark.parametrize("count", range(7))
def test_as_many_examples_as_there_are_shots(count: int) -> None:
    prompt = made(count=count)
    assert prompt.messages[1].content.count("A network with") == count == len(prompt.examples)


def test_a_parents_own_training_is_shown_in_the_recipe_track_alone() -> None:
    assert "train_setup" not in made("unified").parent and "train_setup" not in made().messages[1].content
    recipe = made("unified", recipe=True)
    assert "train_setup" in recipe.parent and recipe.messages[1].content.count("def train_setup") == 4


def test_without_any_network_the_model_starts_from_nothing() -> None:
    prompt = build(TASK, contract_text(), Shown(parent=None, examples=()), PromptConfig(form="unified"))
    assert prompt.form == "network" and prompt.parent == ""
    assert "Propose a good network." in prompt.messages[1].content and "diff" not in prompt.messages[1].content
    no_budget = build(replace(TASK, budget=""), "", shown(0), PromptConfig())
    assert "budget" not in no_budget.messages[1].content


def test_notes_on_a_network_are_shown_with_it() -> None:
    told = Shown(parent=None, examples=(net(1, note="12,345\nparameters"),))
    assert "an accuracy of 89.0% (12,345 parameters):" in build(TASK, "", told, PromptConfig()).messages[1].content


REPLIES: dict[Form, Callable[[str], str]] = {
    "network": lambda parent: fenced(parent.replace("self.width = 50", "self.width = 60")),
    "search-replace": lambda _: (
        "<<<<<<< SEARCH\n        self.width = 50\n=======\n        self.width = 60\n>>>>>>> REPLACE"
    ),
    "unified": lambda _: "```diff\n@@ -7,1 +7,1 @@\n-        self.width = 50\n+        self.width = 60\n```",
    "genome": lambda _: fenced(json.dumps(SPACE.sample(random.Random(9)).to_json()), "json"),
}


@pytest.mark.parametrize("form", get_args(Form))
@pytest.mark.parametrize("thought", [False, True])
def test_an_answer_that_follows_the_prompt_is_read(form: Form, thought: bool) -> None:
    prompt = made(form, chain_of_thought=thought)
    assert prompt.form == form
    assert ("few sentences" in prompt.messages[1].content) == thought
    reply = ("The width limits it.\n\n" if thought else "") + REPLIES[form](prompt.parent)
    found = answer.read(Completion(text=reply), form, parent=prompt.parent, space=SPACE)
    assert (found.reason, found.form) == ("", form)
    if form == "genome":
        assert found.arch == SPACE.sample(random.Random(9))
    else:
        assert found.source == prompt.parent.replace("self.width = 50", "self.width = 60")


def test_the_notations_that_a_prompt_shows_are_those_that_are_read() -> None:
    (block,), (hunk,) = diff.search_replace(EXAMPLE_BLOCK), diff.unified(EXAMPLE_HUNK)
    parent = "\n" * 6 + "        self.pool = nn.AdaptiveAvgPool2d(1)\n        self.head = nn.Linear(64, 10)\n"
    assert diff.apply([block], parent) == diff.apply([hunk], parent) == parent.replace("64", "128")
    assert hunk.line == 6
    assert EXAMPLE_BLOCK in made("search-replace").messages[1].content
    assert EXAMPLE_HUNK in made("unified").messages[1].content


def test_a_genomes_prompt_has_the_spaces_choices_and_no_code() -> None:
    text = made("genome").messages[1].content
    assert all(json.dumps(name) in text for name in SPACE.choices)
    assert "```python" not in text and text.count("```json\n") == 4
    with pytest.raises(BadData, match="space"):
        build(TASK, "", shown(), PromptConfig(form="genome"))


def test_what_does_not_fit_is_dropped_and_on_record() -> None:
    whole = made(count=6, notes=["first", "second"])
    size = estimate(fenced(stripped(net(0).text, recipe=False))) + 20
    less = made(count=6, notes=["first", "second"], tokens=whole.tokens - size)
    assert less.examples == (0, 1, 2, 3) and less.dropped == 2
    assert "first" in less.messages[1].content and "width = 4" not in less.messages[1].content

    least = made(count=6, notes=["first", "second"], tokens=1)
    assert not least.examples and least.dropped == 2 + 6
    assert least.tokens > 1 and "width = 50" in least.messages[1].content and "earlier" not in least.messages[1].content


def test_a_long_example_makes_room_for_a_short_one() -> None:
    long = replace(net(0), text=SOURCE.replace("{width}", "0") + "\n".join(f"x{n} = {n}" for n in range(900)))
    told = Shown(parent=None, examples=(long, net(1)))
    found = build(TASK, contract_text(), told, PromptConfig(tokens=1500))
    assert found.examples == (1,) and found.dropped == 1


@given(st.integers(1, 4000), st.integers(0, 6), st.lists(st.text(max_size=60), max_size=12), st.integers(0, 8))
@settings(max_examples=60)
def test_the_budget_is_kept_unless_what_must_be_there_exceeds_it(
    tokens: int, count: int, notes: list[str], most: int
) -> None:
    found = made(count=count, notes=notes[:most], tokens=tokens)
    bare = made(count=0, tokens=tokens)
    assert found.tokens <= max(tokens, bare.tokens)
    assert count - len(found.examples) <= found.dropped <= count - len(found.examples) + min(len(notes), most)


def test_notes_are_limited() -> None:
    text = made(notes=[f"note {place}." for place in range(20)]).messages[1].content
    assert "note 7." in text and "note 8." not in text


def test_another_count_of_tokens_decides() -> None:
    found = build(TASK, "", shown(), PromptConfig(), count=lambda text: 1000 * len(text))
    assert not found.examples and found.tokens > 1e5


def test_the_retry_shows_the_answer_and_what_was_wrong_with_it() -> None:
    prompt = made()
    found = again(prompt.messages, "<think>hm</think>```python\nx\n```", "expected 3 channels,\ngot 1")
    assert found[:2] == prompt.messages
    assert found[2] == Message(role="assistant", content="```python\nx\n```")
    assert "expected 3 channels, got 1" in found[3].content and found[3].role == "user"
    assert again((), " ", "empty")[0].content == "(no answer)"
    assert again((), "x" * QUOTED, "why")[0].content == "x" * QUOTED
    assert len(again((), "x" * 10**6, "why")[0].content) < QUOTED + 20


def test_code_is_shown_without_comments_docstrings_and_foreign_training() -> None:
    text = stripped(SOURCE.replace("{width}", "8"), recipe=False)
    for gone in ("#", '"""', "It has", "Make it", "Train", "train_setup", "learn", "supported", "lr"):
        assert gone not in text
    kept = stripped(SOURCE.replace("{width}", "8"), recipe=True)
    assert "train_setup" in kept and "def learn(self, train_data):\n        pass" in kept and "#" not in kept
    used = SOURCE.replace("super().__init__()", "super().__init__()\n        self.train_setup(prm)")
    assert "def train_setup" in stripped(used, recipe=False) and "def learn" not in stripped(used, recipe=False)
    assert stripped("class Net(:") == "class Net(:" and stripped("\0") == "\0"
    assert stripped('"""only a docstring"""') == "\n"


def test_stripping_changes_nothing_but_what_is_said() -> None:
    source = 'def f(x):\n    """Doc."""\n    s = "# no comment \\\\d"  # comment\n    return f"{x!r:>{3}}" + s\n'
    names: dict[str, dict] = {}
    for name, text in (("old", source), ("new", stripped(source))):
        names[name] = {}
        exec(compile(ast.parse(text), name, "exec"), names[name])
    assert names["old"]["f"](3) == names["new"]["f"](3) and "Doc" not in stripped(source)


def test_a_fence_is_longer_than_those_inside() -> None:
    assert fenced("x\n") == "```python\nx\n```"
    (block,) = answer.blocks(fenced('s = """\n````\n"""\n'))
    assert block.text == 's = """\n````\n"""\n' and block.closed


@pytest.mark.parametrize("wrong", [{"form": "poem"}, {"tokens": 0}, {"notes": -1}])
def test_impossible_configurations_are_refused(wrong: dict) -> None:
    with pytest.raises(BadData, match="prompt: "):
        PromptConfig(**wrong)
