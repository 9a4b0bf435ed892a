"""How results and tables look in a terminal or a file."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table


def show_rows(rows: Sequence[dict[str, str]], title: str) -> None:
    """A table of equal rows; the keys are its head."""
    console = Console()
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row.values())
    # Piped output keeps its columns: a file has no width to fit into.
    Console(width=None if console.is_terminal else 160).print(table)


def show_lines(lines: Sequence[str]) -> None:
    """Lines on stdout."""
    for line in lines:
        print(line)


def quiet() -> None:
    """Keep transformers' own bars and advice out of befit's output."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def find_own_modules() -> None:
    """Let "module:Class" name a file of the current folder, as `python -m` would."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def say(text: str) -> None:
    """A remark during a run, on stderr."""
    Console(stderr=True).print(text, markup=False)
