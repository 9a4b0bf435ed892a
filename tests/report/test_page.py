"""The kind of a summary says which page draws it."""

import json
from pathlib import Path

from befit.report import elastic, puzzle, render, write_report

DATA = Path(__file__).parent / "data"


def test_each_kind_of_run_has_its_page(tmp_path: Path) -> None:
    fitted, nested = (
        json.loads((DATA / name).read_text(encoding="utf-8")) for name in ("summary.json", "elastic.json")
    )
    assert render(fitted) == puzzle.render(fitted) and render(nested) == elastic.render(nested)
    assert render(fitted) != elastic.render(fitted)
    assert ".sizes {" not in render(fitted), "the page of one kind carries nothing of another's"
    write_report(nested, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render(nested)


def test_an_unknown_kind_is_drawn_as_far_as_it_goes() -> None:
    assert render({"kind": 3, "title": "T"}).endswith("</html>\n")
