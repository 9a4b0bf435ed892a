"""Changes to a parent's source as a model writes them: search/replace blocks, or a unified diff.

    <<<<<<< SEARCH                      @@ -3,2 +3,2 @@
    lines as they are                    a line that stays
    =======                             -a line as it is
    lines as they shall be              +a line as it shall be
    >>>>>>> REPLACE

Models count badly, so a place is found by its text; a line number only chooses between equal places. What is not found as
written is looked for with white space at the line's end ignored, then with all lines indented by the same amount more or
less, which the new lines then get too, then in all three ways without the blank lines at its ends. A change that fits in no
place, or in several, is refused: nothing is ever guessed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from befit.errors import BadProposal

_SEARCH = re.compile(r"\s*<{5,9} ?SEARCH\s*")
_DIVIDER = re.compile(r"\s*={5,9}\s*")
_REPLACE = re.compile(r"\s*>{5,9}( ?REPLACE)?\s*")
_HUNK = re.compile(r"@@(?: -(?P<line>\d+)(?:,(?P<old>\d+))? \+\d+(?:,(?P<new>\d+))? @@)?")
_FENCE = re.compile(r"\s*(`{3,}|~{3,})[\w+-]*\s*")


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Some lines that are to become others."""

    old: tuple[str, ...]
    """As they are, with those around them."""
    new: tuple[str, ...]
    """As they shall be."""
    line: int | None = None
    """Where `old` begins in the parent, from 0, if the diff says so."""


def lines_of(text: str) -> list[str]:
    """The lines of a text, ended by a line feed alone or after a return: a string may well contain a form feed or the like."""
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if not lines[-1] else lines


def is_search_replace(text: str) -> bool:
    """Whether there is the beginning of a search/replace block."""
    return any(_SEARCH.fullmatch(line) for line in lines_of(text))


def is_unified(text: str) -> bool:
    """Whether there is the beginning of a hunk."""
    return any(_HUNK.match(line) for line in lines_of(text))


def search_replace(text: str) -> list[Edit]:
    """The blocks of a text, whatever stands between them. `BadProposal` ("bad-diff") for one that is not complete."""
    edits, old, new = list[Edit](), list[str](), list[str]()
    state = "outside"
    for line in lines_of(text):
        if _SEARCH.fullmatch(line):
            if state != "outside":
                raise _bad("a SEARCH block begins inside another; end each with >>>>>>> REPLACE")
            state, old, new = "old", [], []
        elif state == "old" and _DIVIDER.fullmatch(line):
            state = "new"
        elif state == "new" and line.lstrip().startswith(">") and _REPLACE.fullmatch(line):
            edits.append(Edit(old=_unfenced(old), new=_unfenced(new)))
            state = "outside"
        elif state != "outside" and (_DIVIDER.fullmatch(line) or _REPLACE.fullmatch(line)):
            raise _bad("a block must have SEARCH, one =======, and REPLACE, in this order")
        elif state != "outside":
            (old if state == "old" else new).append(line)
    if state != "outside":
        raise _bad("the last block is not complete; end it with >>>>>>> REPLACE")
    return edits


def unified(text: str) -> list[Edit]:
    """The hunks of a unified diff of one file. `BadProposal` ("bad-diff") for lines that are none of a diff."""
    edits = list[Edit]()
    lines = lines_of(text)
    starts = [place for place, line in enumerate(lines) if _HUNK.match(line)]
    for start, end in pairwise([*starts, len(lines)]):
        edits.append(_hunk(lines[start], lines[start + 1 : end]))
    return edits


def _hunk(header: str, body: Sequence[str]) -> Edit:
    old, new = list[str](), list[str]()
    told = _HUNK.match(header)
    assert told is not None
    size = (int(told["old"] or 1), int(told["new"] or 1)) if told["line"] else None
    body = _one_file(_without_end(body))
    for place, line in enumerate(body):
        kind, rest = line[:1], line[1:]
        if not kind and (len(old), len(new)) == size and not any(one[:1] in ("+", "-") for one in body[place:]):
            break  # the hunk is complete, and prose follows
        if kind in ("", " "):
            old.append(rest)
            new.append(rest)
        elif kind == "-":
            old.append(rest)
        elif kind == "+":
            new.append(rest)
        elif (len(old), len(new)) == size:
            break
        elif kind != "\\":
            raise _bad(f"the line {line[:60]!r} of a hunk begins with neither a space nor + nor -")
    if told["line"] is None:
        return Edit(old=tuple(old), new=tuple(new))
    if not old and told["old"] != "0":
        raise _bad("a hunk that only adds lines needs some lines around them, as they are in the file")
    return Edit(old=tuple(old), new=tuple(new), line=max(0, int(told["line"]) - bool(old)))


def apply(edits: Sequence[Edit], parent: str) -> str:
    """The parent with all edits made, in order.

    Raises:
        BadProposal: With reason "no-diff" (there is none), "bad-diff" (an edit that says nothing), "no-match" (its lines are
            not in the parent), "ambiguous" (they are there several times) or "no-change" (the result is the parent).
    """
    if not edits:
        raise BadProposal("no change found; expected SEARCH/REPLACE blocks or a unified diff", reason="no-diff")
    lines, drift = lines_of(parent), 0
    for edit in edits:
        expected = None if edit.line is None else edit.line + drift
        begin, end, new = _found(edit, lines, expected)
        lines[begin:end] = new
        drift += len(new) - (end - begin)
    if lines == lines_of(parent):
        raise BadProposal("the changes leave the parent as it is", reason="no-change")
    return "".join(f"{line}\n" for line in lines)


def _found(edit: Edit, lines: Sequence[str], expected: int | None) -> tuple[int, int, Sequence[str]]:
    """Which lines, from where to where, to replace by which."""
    if not any(line.strip() for line in edit.old) and expected is None:
        raise _bad("a change that only adds must show some lines around it, as they are in the file")
    if not edit.old:
        if expected is None or not 0 <= expected <= len(lines):
            raise _bad(f"lines are to be added at line {edit.line}, and the file has {len(lines)}")
        return expected, expected, edit.new
    for one, matches in product((edit, _trimmed(edit)), (_exact, _without_trailing, _indented)):
        size = len(one.old)
        places = range(len(lines) - size + 1) if size else ()
        found = {place: new for place in places if (new := matches(one, lines, place)) is not None}
        if len(found) > 1 and expected not in found:
            raise BadProposal(
                f"{_quoted(edit)} fits in {len(found)} places; show more lines around it", reason="ambiguous"
            )
        if found:
            place = expected if expected is not None and expected in found and len(found) > 1 else next(iter(found))
            return place, place + size, found[place]
    raise BadProposal(f"{_quoted(edit)} is not in the file; copy the lines as they are", reason="no-match")


def _trimmed(edit: Edit) -> Edit:
    """Without the blank lines at both ends."""
    return Edit(old=_trim(edit.old), new=_trim(edit.new))


def _trim(lines: Sequence[str]) -> tuple[str, ...]:
    said = [place for place, line in enumerate(lines) if line.strip()]
    return tuple(lines[said[0] : said[-1] + 1]) if said else ()


def _exact(edit: Edit, lines: Sequence[str], place: int) -> Sequence[str] | None:
    return edit.new if tuple(lines[place : place + len(edit.old)]) == edit.old else None


def _without_trailing(edit: Edit, lines: Sequence[str], place: int) -> Sequence[str] | None:
    same = all(have.rstrip() == old.rstrip() for have, old in zip(lines[place:], edit.old, strict=False))
    return edit.new if same else None


def _indented(edit: Edit, lines: Sequence[str], place: int) -> Sequence[str] | None:
    """The new lines, moved as far as the old ones are; None if these do not all stand equally far off."""
    shift: int | None = None
    for have, old in zip(lines[place:], edit.old, strict=False):
        if have.strip() != old.strip():
            return None
        if have.strip():
            step = _indent(have) - _indent(old)
            if shift is not None and step != shift:
                return None
            shift = step
    if shift is None or any(line.strip() and _indent(line) + shift < 0 for line in edit.new):
        return None
    return [" " * (_indent(line) + shift) + line.lstrip() if line.strip() else "" for line in edit.new]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _quoted(edit: Edit) -> str:
    first = next((line.strip() for line in edit.old if line.strip()), "")
    return f"the change at {first[:60]!r}"


def _unfenced(lines: list[str]) -> tuple[str, ...]:
    """Lines without the code fence that some models put inside a block."""
    if len(lines) >= 2 and _FENCE.fullmatch(lines[0]) and _FENCE.fullmatch(lines[-1]):
        return tuple(lines[1:-1])
    return tuple(lines)


def _without_end(lines: Sequence[str]) -> Sequence[str]:
    """Without the empty lines at the end, which separate a hunk from what follows more often than they belong to it."""
    end = len(lines)
    while end and not lines[end - 1]:
        end -= 1
    return lines[:end]


def _one_file(lines: Sequence[str]) -> Sequence[str]:
    if any(first.startswith("--- ") and second.startswith("+++ ") for first, second in pairwise(lines)):
        raise _bad("the diff changes a second file; there is only one")
    return lines


def _bad(message: str) -> BadProposal:
    return BadProposal(message, reason="bad-diff")
