import io
import sys

import pytest
from rich.console import Console

from befit.progress import Bars, silent


def plain() -> tuple[Bars, io.StringIO]:
    text = io.StringIO()
    return Bars(Console(file=text, force_terminal=False, width=40)), text


def test_silent_passes_everything_on(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(silent(iter("abc"), "letters")) == ["a", "b", "c"]
    assert capfd.readouterr() == ("", "")


def test_without_a_terminal_each_finished_loop_is_one_line() -> None:
    bars, text = plain()
    with bars as progress:
        for outer in progress([1, 2], "layers"):
            assert list(progress(range(outer), f"variants of [{outer}]")) == list(range(outer))
        for _ in progress(range(5), "left early"):
            break
    lines = text.getvalue().splitlines()
    assert [line.split(" in ")[0] for line in lines] == ["variants of [1]: 1", "variants of [2]: 2", "layers: 2"]
    assert all(line.endswith(" s") for line in lines)


def test_an_error_in_the_loop_comes_through_and_the_bars_still_work() -> None:
    bars, text = plain()
    with pytest.raises(ZeroDivisionError), bars as progress:
        list(progress((1 // item for item in [1, 0]), "division"))
    with bars as progress:
        assert list(progress(iter([7]), "again", total=1)) == [7]
    assert text.getvalue().startswith("again: 1 in ")


def test_a_terminal_shows_label_count_and_time_left() -> None:
    text = io.StringIO()
    with Bars(Console(file=text, force_terminal=True, width=100)) as progress:
        for _ in progress(["a", "b"], "layers"):
            assert list(progress(iter([1, 2, 3]), "inner", total=3)) == [1, 2, 3]
    last = [line for line in text.getvalue().splitlines() if "/" in line][-1]
    assert "layers" in last and "2/2" in last and "left" in last
    assert "inner" not in last


def test_bars_go_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with Bars() as progress:
        assert list(progress([1], "once")) == [1]
    out, err = capfd.readouterr()
    assert not out and err.startswith("once: 1 in ") and sys.stderr.isatty() is False
