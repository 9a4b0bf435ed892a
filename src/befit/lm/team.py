"""The processes of one run: `accelerate launch` starts several, each with a device of its own, and all run the whole pipeline.

What only one need do, the main process does first while the others wait, then they read what it wrote: the run directory must
be on a disk that all share. A stage of many independent parts, such as the layers of a library, is shared: every process does
its own parts, the main one puts them together. Training is what all do together, step by step. Processes wait through
gloo, on the CPU: waiting in NCCL keeps a GPU busy, and gives up after ten minutes. A stage whose course is decided as it goes,
such as a local search, is led: the main process asks, and all answer.

The main process alone tells what is wrong, be it its own error or another's; all end with the same exit code.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from befit.errors import BefitError, RunConflict
from befit.rundir import Run

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

Answer = Callable[[Any], Any]
"""What any process can do for the main one. Question and answer are pickled."""
AskAll = Callable[[Sequence[Any]], list[Any]]
"""Questions to answers, in the same order."""


@dataclass(frozen=True, kw_only=True)
class Team:
    """This process among all of the run. Alone, nothing here does anything."""

    size: int = 1
    """Processes."""
    rank: int = 0
    """Which of them this one is, from 0."""
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

    def stage(self, run: Run, name: str, key: str, make: Callable[[Path], None]) -> Path:
        """The folder of a stage, made by the main process if it is new, read by the others."""
        with self.first():
            return run.stage(name, key, make if self.main else _unseen)

    def shared_stage(
        self, run: Run, name: str, key: str, work: Callable[[Path], None], finish: Callable[[Path], None]
    ) -> Path:
        """The folder of a stage that all make: each does its parts in `work`, then the main one does `finish`.

        `work` takes the parts that `mine` tells and leaves files of its own; what an interrupted attempt left may be used.
        """

        def make(folder: Path) -> None:
            self._all(lambda: work(folder))
            finish(folder)

        if not self.main and not run.is_done(name, key):
            folder = run.stage_folder(name, key)
            self._all(lambda: work(folder))
        return self.stage(run, name, key, make)

    def led_stage(self, run: Run, name: str, key: str, make: Callable[[Path, AskAll], None], answer: Answer) -> Path:
        """The folder of a stage that the main process makes with the help of all.

        `make(folder, ask)` is its own; each call of `ask` shares out questions that `answer` can answer in any process.
        """
        new = self.agreed(not run.is_done(name, key))
        if new and not self.main:
            self._follow(answer)

        def ask(questions: Sequence[Any]) -> list[Any]:
            if self.size > 1:
                torch.distributed.broadcast_object_list([list(questions)], src=0, group=self.group)
            return self._answered(answer, questions)

        with self.first():
            try:
                return run.stage(name, key, (lambda folder: make(folder, ask)) if self.main else _unseen)
            finally:
                if new and self.main and self.size > 1:
                    with suppress(RuntimeError):  # another process may be gone by now; why is told already
                        torch.distributed.broadcast_object_list([None], src=0, group=self.group)

    def mine(self, part: int) -> bool:
        """Whether part number `part` of a shared stage is this process's."""
        return part % self.size == self.rank

    def agreed(self, said: bool) -> bool:
        """What the main process says; every process must ask."""
        if self.size == 1:
            return said
        if self.main:
            self._tell(said)
            return said
        return self._hear()

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes; every process must ask."""
        if self.size > 1:
            torch.distributed.all_reduce(values)
            values /= self.size
        return values

    def _follow(self, answer: Answer) -> None:
        """Answer what the main process asks, until it asks no more."""
        while True:
            heard: list[Any] = [None]
            torch.distributed.broadcast_object_list(heard, src=0, group=self.group)
            if heard[0] is None:
                return
            self._answered(answer, heard[0])

    def _answered(self, answer: Answer, questions: Sequence[Any]) -> list[Any]:
        """The answers to all questions, of which this process works out its share."""
        shares = self._all(lambda: [answer(question) for question in questions[self.rank :: self.size]])
        return [shares[number % self.size][number // self.size] for number in range(len(questions))]

    def _all(self, work: Callable[[], Any]) -> list[Any]:
        """Do this process's part and wait for the others; what each found. An error of one is the error of all."""
        if self.size == 1:
            return [work()]
        found, said = None, "it was stopped"
        try:
            found, said = work(), ""
        except BefitError as error:
            said = str(error)
            if self.main:
                raise
        finally:
            told: list[Any] = [None] * self.size
            with suppress(*((RuntimeError,) if said else ())):  # another process may be gone by now
                torch.distributed.all_gather_object(told, (found, said), group=self.group)
        failed = [(rank, one[1]) for rank, one in enumerate(told) if one and one[1]]
        if failed and self.main:
            raise BefitError(f"process {failed[0][0]} of {self.size}: {failed[0][1]}")
        if failed:
            raise _left()
        return [one[0] for one in told]

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


def _unseen(folder: Path) -> None:
    raise RunConflict(f"{folder} is not seen by every process; give an --out on a disk that all machines share")


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
    return Team(size=state.num_processes, rank=state.process_index, main=state.is_main_process, group=group)
