"""What a model is told: the task, the contract, scored networks, what was learned so far, and the form of the answer.

A prompt is put together from small functions of text. What must be there (task, contract, parent, form) always is; notes and
examples compete for the rest of the token budget, and what does not fit is dropped and put on record. Code is shown without
comments, docstrings and what the track does not need, so that more of it fits; the parent is shown as the very text that
changes to it are applied to.
"""

import ast
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

from befit.arch.space import Space
from befit.errors import BadData
from befit.propose import genome
from befit.propose.answer import Form, without_thoughts
from befit.propose.archive import Scored, Shown
from befit.propose.contract import HYPERPARAMETERS, RECIPE_METHODS
from befit.propose.models import Message

MESSAGE_TOKENS = 4
"""What a chat template adds to a message, about."""


def estimate(text: str) -> int:
    """Tokens of a text where no tokenizer is at hand: a third of its bytes, rather too many than too few for code."""
    return math.ceil(len(text.encode("utf-8", "replace")) / 3)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the networks are for."""

    dataset: str
    """Name of the data."""
    images: tuple[int, int, int]
    """Channels, height and width of an image."""
    classes: int
    """Number of classes."""
    training: str
    """How a network is trained before it is scored: one sentence."""
    budget: str = ""
    """The bounds that a network must meet, as the user gave them; empty for none."""


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """The shape of a prompt."""

    form: Form = "network"
    """network, search-replace, unified or genome. Changes need a parent: without one the whole network is asked for."""
    chain_of_thought: bool = False
    """Ask for a reason before the answer."""
    tokens: int = 8192
    """Budget of the whole prompt, at least 1."""
    notes: int = 8
    """Notes shown at most, 0 or more."""
    recipe: bool = False
    """Whether networks bring their own training; if not, that part of the parent and the examples is left out."""

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            raise BadData(f"prompt: form must be one of {', '.join(get_args(Form))}, got {self.form!r}")
        if self.tokens < 1 or self.notes < 0:
            raise BadData(f"prompt: tokens must be at least 1 and notes 0 or more, got {self.tokens} and {self.notes}")


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt, and what to read its answer with."""

    messages: tuple[Message, ...]
    """The conversation to send."""
    form: Form
    """The form that is asked for."""
    parent: str = ""
    """The parent as it is shown: what the changes in an answer refer to."""
    examples: tuple[int, ...] = ()
    """Numbers of the networks shown beside the parent, the most valuable first."""
    tokens: int = 0
    """By the count given; more than the budget if what must be there is more."""
    dropped: int = 0
    """Examples and notes that did not fit."""


def build(
    task: Task,
    contract: str,
    shown: Shown,
    config: PromptConfig,
    *,
    space: Space | None = None,
    notes: Sequence[str] = (),
    count: Callable[[str], int] = estimate,
) -> Prompt:
    """The prompt for one proposal.

    `contract` is what a network must offer, as code; `notes` are lines on what was learned, the most useful first; `space`
    is a genome's. Notes go in before examples, for they are short and say what not to repeat. Raises `BadData` for a genome
    without its space.
    """
    if config.form == "genome" and space is None:
        raise BadData("prompt: the form 'genome' needs its space")
    form: Form = "network" if shown.parent is None and config.form in ("search-replace", "unified") else config.form
    parent = "" if shown.parent is None else _code(shown.parent, form, recipe=config.recipe)
    rules = _contract(contract) if form != "genome" or space is None else _choices(space)
    fixed = [_task(task), rules, _parent(shown.parent, parent, form), _ask(shown, form, config.chain_of_thought)]
    spent = sum(count(f"{one}\n\n") for one in (SYSTEM, NOTES, *fixed)) + 2 * MESSAGE_TOKENS

    offered = [(None, f"- {' '.join(one.split())}") for one in notes[: config.notes]]
    offered += [(one.number, _example(one, form, config.recipe)) for one in shown.examples]
    kept = list[tuple[int | None, str]]()
    for number, text in offered:
        size = count(f"{text}\n\n")
        if spent + size <= config.tokens:
            spent += size
            kept.append((number, text))
    told = [text for number, text in kept if number is None]
    others = [(number, text) for number, text in kept if number is not None]
    # The best example stands last, next to the question: what is near counts most.
    learned = "\n".join([NOTES, *told]) if told else ""
    parts = [*fixed[:2], learned, *(text for _, text in reversed(others)), *fixed[2:]]
    user = "\n\n".join(part for part in parts if part)
    messages = (Message(role="system", content=SYSTEM), Message(role="user", content=user))
    return Prompt(
        messages=messages,
        form=form,
        parent=parent,
        examples=tuple(number for number, _ in others),
        tokens=sum(count(one.content) + MESSAGE_TOKENS for one in messages),
        dropped=len(offered) - len(kept),
    )


QUOTED = 40_000
"""Most characters of a refused answer that are sent back: an answer without end would make a prompt that no model takes."""


def again(messages: Sequence[Message], answer: str, said: str) -> tuple[Message, ...]:
    """The conversation with a refused answer and, in one line, why it was refused: for the one retry."""
    text = without_thoughts(answer).strip() or "(no answer)"
    if len(text) > QUOTED:
        text = f"{text[:QUOTED]}\n(and so on)"
    why = f"This was refused: {' '.join(said.split())}\nAnswer once more, complete and in the same form, with this put right."
    return (*messages, Message(role="assistant", content=text), Message(role="user", content=why))


SYSTEM = "You design small neural networks in PyTorch that classify images. You answer in exactly the form that is asked for."

NOTES = "What earlier proposals have shown:"


def _task(task: Task) -> str:
    channels, height, width = task.images
    lines = [
        f"Task: classify the images of {task.dataset} ({channels} x {height} x {width}) into {task.classes} classes. "
        f"{task.training.strip()}"
    ]
    if task.budget:
        lines.append(f"A network counts only if it meets this budget: {task.budget}.")
    lines.append("The higher the accuracy on images not seen in training, the better.")
    return "\n".join(lines)


def _contract(contract: str) -> str:
    return f"A network is one Python file that offers this:\n{fenced(contract)}"


def _choices(space: Space) -> str:
    return f"A network is one JSON object with these keys:\n{genome.describe(space)}"


def _example(one: Scored, form: Form, recipe: bool) -> str:
    code = fenced(_code(one, form, recipe=recipe), "json" if form == "genome" else "python")
    return f"A network with {_accuracy(one)}:\n{code}"


def _parent(one: Scored | None, text: str, form: Form) -> str:
    if one is None:
        return ""
    return f"The network to improve, with {_accuracy(one)}:\n{fenced(text, 'json' if form == 'genome' else 'python')}"


def _accuracy(one: Scored) -> str:
    return f"an accuracy of {one.accuracy:.1%}" + (f" ({' '.join(one.note.split())})" if one.note else "")


def _code(one: Scored, form: Form, *, recipe: bool) -> str:
    return one.text.strip() + "\n" if form == "genome" else stripped(one.text, recipe=recipe)


def _ask(shown: Shown, form: Form, chain_of_thought: bool) -> str:
    known = shown.parent is not None or bool(shown.examples)
    goal = (
        "Propose a network that is better than all of these and differs from them."
        if known
        else "Propose a good network."
    )
    if chain_of_thought:
        think = "First say in a few sentences what limits the accuracy and what you will do about it."
        return f"{goal} {think} Then answer {FORMS[form]}"
    return f"{goal} Write no explanations. Answer {FORMS[form]}"


EXAMPLE_BLOCK = """\
<<<<<<< SEARCH
        self.head = nn.Linear(64, 10)
=======
        self.head = nn.Linear(128, 10)
>>>>>>> REPLACE
"""

EXAMPLE_HUNK = """\
@@ -7,2 +7,2 @@
         self.pool = nn.AdaptiveAvgPool2d(1)
-        self.head = nn.Linear(64, 10)
+        self.head = nn.Linear(128, 10)
"""

FORMS: dict[Form, str] = {
    "network": "with the whole file in one ```python block.",
    "search-replace": (
        "with the changes to the network to improve, each in a block of this form; the lines to search must be copied "
        f"exactly, and stand only once in the file:\n```\n{EXAMPLE_BLOCK}```"
    ),
    "unified": (
        "with a unified diff of the network to improve in one ```diff block; unchanged and removed lines must be copied "
        f"exactly:\n```diff\n{EXAMPLE_HUNK}```"
    ),
    "genome": "with one JSON object in a ```json block: a value for each key whose condition holds, and no other key.",
}
"""How each form is asked for."""


def fenced(text: str, language: str = "python") -> str:
    """A text in a code block whose fence is longer than any inside."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    mark = "`" * (longest + 1)
    return f"{mark}{language}\n{text.rstrip()}\n{mark}"


def stripped(source: str, *, recipe: bool = True) -> str:
    """Python without comments and docstrings, in one layout; without `recipe`, also without the file's own training.

    A part of the training that something else uses stays. Source that is not Python is returned as it is.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in a string is the proposal's
            tree = ast.parse(source)
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    _drop(node, recipe=recipe, used=set() if recipe else _used(tree))
            return ast.unparse(tree) + "\n"
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return source


def _drop(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, *, recipe: bool, used: set[str]
) -> None:
    unwanted = set[str]() if recipe else {*RECIPE_METHODS, HYPERPARAMETERS} - used
    inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    kept = [one for one in body if inside or not (isinstance(one, ast.FunctionDef) and one.name in unwanted)]
    node.body = [*kept] if kept or isinstance(node, ast.Module) else [ast.Pass()]


def _used(tree: ast.Module) -> set[str]:
    """Names that the file itself reads."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return names | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
