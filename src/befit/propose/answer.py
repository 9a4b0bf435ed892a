"""From what a model said to a candidate, or to the name of what is wrong with it.

Models think aloud, wrap code in prose and fences, forget to close them, show a draft before the final version, or stop in
the middle. What they meant is taken where there is no doubt about it; everything else is refused under one of `REASONS`, with
one line that tells the model what to do better. `read` raises nothing, whatever the text.
"""

import re
from dataclasses import dataclass
from typing import Literal

from befit.arch.space import Arch, Space
from befit.errors import BadData, BadProposal
from befit.propose import diff, genome
from befit.propose.contract import LARGEST, NET, parse
from befit.propose.models import Completion, one_line

Form = Literal["network", "search-replace", "unified", "genome"]
"""What a model is asked for: the whole file, changes to a parent in one of two notations, or JSON of a space."""

REASONS = (
    "empty", "filtered", "junk", "too-long", "refused", "rate-limit", "outage", "memory", "truncated", "too-large", "no-code",
    "no-diff", "bad-diff", "no-match", "ambiguous", "no-change", "no-genome", "bad-genome",
)  # fmt: skip
"""Why an answer is no candidate. The first eight are the ways in which a call ends without one (see `models.Finish`)."""

_THOUGHT = re.compile(r"<(/?)(?:think|thinking|thought|thoughts|reasoning|reflection)>", re.IGNORECASE)
_FENCE = re.compile(r"(?P<indent>[ \t]*)(?P<mark>`{3,}|~{3,})[ \t]*(?P<language>[\w+#.-]*)[^`]*")
_HAS_NET = re.compile(rf"^[ \t]*class[ \t]+{NET}\b", re.MULTILINE)
_BEGINS_CODE = re.compile(rf"^(?:import [\w.]+|from [\w.]+ import |class {NET}\b)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A candidate, or why there is none."""

    form: Form
    """The form that the answer has; a model asked for changes may have written the whole file."""
    source: str = ""
    """The network's file, if the form is not a genome."""
    arch: Arch | None = None
    """The genome's arch."""
    reason: str = ""
    """One of `REASONS`; empty for a candidate."""
    said: str = ""
    """What is wrong and what was expected, in one line for the model's next try."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced piece of an answer."""

    text: str
    """What is inside, without the fence's own indentation."""
    closed: bool = True
    """Whether its end was written."""


def read(completion: Completion, form: Form, *, parent: str = "", space: Space | None = None) -> Answer:
    """The candidate in a completion, of the form that was asked for.

    `parent` is the source that changes refer to, exactly as it was shown; `space` is a genome's. Raises `BadData` if the one
    that the form needs is missing, and nothing else.
    """
    if form in ("search-replace", "unified") and not parent:
        raise BadData(f"answer: the form {form!r} needs the parent's source as it was shown")
    if form == "genome" and space is None:
        raise BadData("answer: the form 'genome' needs its space")
    if completion.finish not in ("stop", "length"):
        return Answer(form=form, reason=completion.finish, said=completion.said or f"no answer: {completion.finish}")
    cut = completion.finish == "length"
    try:
        text = without_thoughts(completion.text.replace("\r\n", "\n"))
        if not text.strip():
            raise BadProposal("the answer is empty", reason="empty")
        if space is not None and form == "genome":
            return Answer(form=form, arch=_genome(text, space))
        if form == "network":
            return Answer(form=form, source=_network(text, cut=cut))
        return _changed(text, form, parent, cut=cut)
    except BadProposal as error:
        if cut and error.reason in ("empty", "no-code", "no-diff", "bad-diff", "no-genome"):
            return Answer(form=form, reason="truncated", said=_CUT)
        return Answer(form=form, reason=error.reason, said=one_line(str(error)))


_CUT = "the answer was cut off before it was complete; write less around the code"


def without_thoughts(text: str) -> str:
    """The text without what stands between <think> and </think>; a thought that never ends goes on to the end.

    Some chat templates open the thought themselves, so that an answer may begin inside it.
    """
    kept, begin, inside = list[str](), 0, False
    for number, tag in enumerate(_THOUGHT.finditer(text)):
        closes = bool(tag[1])
        if closes and (inside or number == 0):
            inside, begin = False, tag.end()
        elif not closes and not inside:
            kept.append(text[begin : tag.start()])
            inside = True
    return "".join(kept) + ("" if inside else text[begin:])


def blocks(text: str, *, restart: bool = False) -> list[Block]:
    """The fenced pieces of a text, in order. A fence inside a longer one, or of the other kind, is part of it.

    With `restart`, a fence with a language begins a new piece wherever it stands: for an answer that forgot to close one, or
    wrapped all of it in another.
    """
    found, inside = list[Block](), list[str]()
    opened: re.Match[str] | None = None
    for line in text.split("\n"):
        told = _FENCE.fullmatch(line)
        if opened is not None and told is not None and told["mark"].startswith(opened["mark"]) and not told["language"]:
            found.append(_block(inside, opened, closed=True))
            opened = None
        elif told is not None and (opened is None or (restart and told["language"])):
            if opened is not None:
                found.append(_block(inside, opened, closed=False))
            opened, inside = told, []
        else:
            inside.append(line)
    return [*found, _block(inside, opened, closed=False)] if opened is not None else found


def _block(lines: list[str], opened: re.Match[str], *, closed: bool) -> Block:
    indent = opened["indent"]
    text = "\n".join(line.removeprefix(indent) for line in lines).rstrip("\n")
    return Block(text=f"{text}\n" if text else "", closed=closed)


def _network(text: str, *, cut: bool) -> str:
    """The file in an answer: the last piece with a class `Net` that can be parsed, else the last with one, else any code."""
    fenced = blocks(text)
    pieces = [one.text for one in fenced] + _tagged(text)
    nets = [one for one in pieces if _HAS_NET.search(one)]
    again = [one.text for one in blocks(text, restart=True)] if nets else []
    whole = [one for one in nets if _is_whole(one)] or [one for one in again if _is_whole(one)]
    source = (whole or nets or [_bare(text) if _HAS_NET.search(text) else ""])[-1]
    source = source or max((one for one in pieces if one.strip()), key=len, default="")
    if not source:
        raise BadProposal(f"no code found; answer with one ```python block that defines class {NET}", reason="no-code")
    if len(source) > LARGEST:
        raise BadProposal(f"{len(source):,} characters of code; at most {LARGEST:,}", reason="too-large")
    if cut and not (source in whole and all(one.closed for one in fenced)):
        raise BadProposal(_CUT, reason="truncated")
    return source


def _tagged(text: str) -> list[str]:
    """What stands in the last <nn> … </nn>, the form that models tuned on LEMUR write; nothing if that holds fences."""
    end = text.rfind("</nn>")
    begin = text.rfind("<nn>", 0, max(0, end))
    inside = text[begin + 4 : end].strip("\n") + "\n" if 0 <= begin < end else ""
    return [inside] if inside.strip() and "```" not in inside else []


def _is_whole(source: str) -> bool:
    try:
        parse(source)
    except BadProposal:
        return False
    return True


def _bare(text: str) -> str:
    """Code without a fence: from the first import or the class, without the paragraphs of prose that follow it."""
    begin = _BEGINS_CODE.search(text)
    if begin is None:
        return ""
    code = text[begin.start() :]
    if len(code) > LARGEST:
        return code
    paragraphs = re.split(r"\n[ \t]*\n", code)
    for kept in range(len(paragraphs), max(0, len(paragraphs) - 8), -1):
        part = "\n\n".join(paragraphs[:kept]).rstrip() + "\n"
        if _is_whole(part):
            return part
    return code.rstrip() + "\n"


def _changed(text: str, form: Form, parent: str, *, cut: bool) -> Answer:
    """The parent with the answer's changes, in whichever notation they are; or the whole file, if it is that."""
    if len(text) > LARGEST:
        raise BadProposal(f"an answer of {len(text):,} characters; at most {LARGEST:,}", reason="too-large")
    if diff.is_search_replace(text):
        form, edits = "search-replace", diff.search_replace(text)
    elif diff.is_unified(text):
        fenced = [one.text for one in blocks(text) if diff.is_unified(one.text)]
        form, edits = "unified", [edit for one in fenced or [text] for edit in diff.unified(one)]
    elif _HAS_NET.search(text):
        source = _network(text, cut=cut)
        if source.rstrip("\n") == parent.rstrip("\n"):
            raise BadProposal("the file is the parent as it is", reason="no-change")
        return Answer(form="network", source=source)
    else:
        edits = []
    if cut:
        raise BadProposal(_CUT, reason="truncated")
    return Answer(form=form, source=diff.apply(edits, parent))


def _genome(text: str, space: Space) -> Arch:
    if len(text) > LARGEST:
        raise BadProposal(f"an answer of {len(text):,} characters; at most {LARGEST:,}", reason="too-large")
    fenced = [one.text for one in blocks(text) if "{" in one.text]
    return genome.read(space, fenced or [text])
