"""The processes of one run: `accelerate launch` starts several, each with a device of its own, and all run the whole pipeline.

What only one need do, the main process does first while the others wait, then they read what it wrote: the run directory must
be on a disk that all share. Training is the part that all do together (`befit.elastic.train`). The others wait through
gloo, on the CPU: waiting in NCCL keeps a GPU busy, and gives up after ten minutes.

An error of the main process ends all: it alone tells what is wrong, the others end with its exit code.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import torch

from befit.errors import BefitError

SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where launchers write how many processes there are; Accelerate reads the same."""
STAGE = timedelta(days=7)
"""How long the others wait for what the main process does alone, such as ranking a large parent."""
STEP = timedelta(hours=2)
"""How long a step of training may take, with the writing of a checkpoint of hundreds of GB."""
FAILED = 2
"""Exit code of the others where the main process failed; its own, for an error that is the user's to fix."""
LAST_WORDS = 1.0
"""Seconds that the main process has to say what is wrong: when the first process ends, launchers end the others."""


@dataclass(frozen=True, kw_only=True)
class Team:
    """This process among all of the run. Alone, nothing here does anything."""

    size: int = 1
    """Processes."""
    main: bool = True
    """Whether this one works alone while the others wait, and speaks for all."""
    group: Any = None
    """All processes, through gloo."""

    @staticmethod
    def of(device: str) -> "Team":
        """The team of this process, gathered once; `device` is "cpu", "cuda" or "auto".

        Where there are several processes, the current CUDA device is this process's own from here on.
        """
        return _gathered(device == "cpu" or not torch.cuda.is_available())

    @contextmanager
    def first(self) -> Iterator[None]:
        """The main process goes through the block first, then the others; if it fails, they end with `SystemExit`."""
        if self.size == 1:
            yield
            return
        if not self.main and not self._hear():
            raise _left()
        done = False
        try:
            yield
            done = True
        finally:
            if self.main:
                self._tell(done)

    @contextmanager
    def one_voice(self) -> Iterator[None]:
        """An error that all processes meet, such as a loss that is no number, is told by the main one alone."""
        try:
            yield
        except BefitError as error:
            if self.main:
                raise
            raise _left() from error

    def _tell(self, done: bool) -> None:
        # Where the others are gone already, the error that ended this block is the one to tell.
        with suppress(*(() if done else (RuntimeError,))):
            torch.distributed.broadcast(torch.tensor(done), src=0, group=self.group)

    def _hear(self) -> bool:
        done = torch.tensor(False)
        torch.distributed.broadcast(done, src=0, group=self.group)
        return bool(done)


def _left() -> SystemExit:
    """The end of a process that has nothing to say."""
    time.sleep(LAST_WORDS)
    return SystemExit(FAILED)


@cache
def _gathered(cpu: bool) -> Team:
    if max(int(os.environ.get(name, "1")) for name in SIZES) == 1:
        return Team()
    from accelerate import PartialState

    state = PartialState(cpu=cpu, timeout=STEP)  # which makes the device of this process the current one
    if state.num_processes == 1:
        return Team()
    group = torch.distributed.new_group(backend="gloo", timeout=STAGE)
    return Team(size=state.num_processes, main=state.is_main_process, group=group)
