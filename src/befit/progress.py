"""How far long work is: one callable that passes items on and may show them going by.

Whatever takes long takes `progress: Progress = silent` and writes `for layer in progress(layers, "library")`. What is
shown, and where, is the caller's business: nothing (`silent`), or bars with the remaining time on stderr (`Bars`).
"""

import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import Protocol, TypeVar

from rich import progress as bars
from rich.console import Console

Item = TypeVar("Item")


class Progress(Protocol):
    """Yields every item unchanged, in order. `total` is the number of items where `items` has no length."""

    def __call__(self, items: Iterable[Item], label: str, total: int | None = None) -> Iterable[Item]: ...


def silent(items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
    """Show nothing."""
    del label, total
    yield from items


class Bars:
    """A bar for each loop under way, on stderr: `with Bars() as progress: ...`.

    A loop inside a loop has its bar below, which goes when it ends; an outermost loop's bar stays. Where stderr is no
    terminal, every loop that ends writes one plain line instead, with its number of items and its seconds.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._depth = 0
        self._bars = bars.Progress(
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TimeElapsedColumn(),
            bars.TextColumn("left"),
            bars.TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> "Bars":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
        """Yield the items of a loop called `label`. A loop that is left early shows no time."""
        size = len(items) if total is None and isinstance(items, Sized) else total
        task = self._bars.add_task(label, total=size)
        start, count = time.monotonic(), 0
        nested = self._depth > 0
        self._depth += 1
        try:
            for item in items:
                yield item
                count += 1
                self._bars.update(task, advance=1)
            self._finish(task, label, count, time.monotonic() - start)
        finally:
            self._depth -= 1
            if nested:
                self._bars.remove_task(task)

    def _finish(self, task: bars.TaskID, label: str, count: int, seconds: float) -> None:
        self._bars.update(task, total=count)
        if not self._console.is_terminal:
            self._console.print(f"{label}: {count} in {seconds:.1f} s", markup=False, highlight=False, soft_wrap=True)
