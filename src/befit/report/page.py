"""The report of any run: which page draws which kind of summary, and the file on disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from befit.report import elastic, frame, proposals, puzzle, search


def write_report(summary: Mapping[str, Any], path: Path) -> None:
    """Write the page in one step: a reader sees the old file or the new one, never half of it. Raises `OSError`."""
    frame.write(render(summary), path)


def render(summary: Mapping[str, Any]) -> str:
    """The whole page as text. Missing parts of the summary are left out; nothing in it can make this raise.

    A summary names its `kind`; one without is of `befit puzzle`.
    """
    match summary.get("kind"):
        case "elastic":
            return elastic.render(summary)
        case "search":
            return search.render(summary)
        case "proposals":
            return proposals.render(summary)
        case _:
            return puzzle.render(summary)
