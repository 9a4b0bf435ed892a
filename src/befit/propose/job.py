"""What all proposals of one run share: the run directory, the images, the sandboxes, and the lanes in which they are made."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product

from befit.cost.device import found_device
from befit.errors import RunConflict
from befit.progress import Progress, silent
from befit.propose import fitting
from befit.propose.arms import arms_of
from befit.propose.attempts import Attempts
from befit.propose.config import ProposeConfig
from befit.propose.gate import Gate, checked
from befit.propose.judge import Training, reach_gpu
from befit.propose.lane import Lane, lane_of
from befit.propose.lemur import Imported, read_lemur
from befit.propose.models import Model
from befit.propose.network import PRM
from befit.propose.records import Records
from befit.propose.sandbox import tasks
from befit.propose.sandbox.box import Sandbox
from befit.rundir import Run, digest, write_json
from befit.vision.data import Images, load_images

TABLES = "proposals.sqlite"
"""The file with the proposals and the attempts of a run."""

REDONE = (
    "out", "proposals", "seeds", "cache", "patience", "timeout", "key_variable", "prices", "device", "final", "memory",
)  # fmt: skip
"""Settings that may change in an existing run directory."""

GIB = 2**30

WORTH_A_GPU = 2.5e7
"""Numbers in the training images, times epochs, from which training on a GPU pays: each candidate is a process of its own, whose
CUDA takes about ten seconds to be ready, in which a CPU trains a small network on as many (benchmarks/sandbox_gpu.py)."""


@dataclass(kw_only=True)
class ProposeJob:
    """One run of `befit propose`."""

    config: ProposeConfig
    run: Run
    progress: Progress
    say: Callable[[str], None]
    records: Records
    attempts: Attempts
    images: Mapping[str, Images]
    """By dataset."""
    lanes: list[Lane]
    training: Training
    """Of every proposal."""
    notes: tuple[str, ...] = ()
    """What is worth knowing of the networks known from the start."""

    @staticmethod
    def open(
        config: ProposeConfig,
        progress: Progress = silent,
        say: Callable[[str], None] = warnings.warn,
        *,
        model: Model | None = None,
        data: Images | None = None,
    ) -> "ProposeJob":
        """Read the images, make or re-enter the run directory, and make whoever proposes.

        `model` and `data` stand for `config.llm` and `config.data`. Raises `BadData`, `BadBudget`, `RunConflict`,
        `IllegalArch` or `UnsupportedModel`.
        """
        checked(config.bounds)
        arms = arms_of(config)
        if data is not None:
            images = {data.source: data}
        else:
            images = {name: load_images(source, size=config.size) for name, source in config.datasets.items()}
        training = training_of(config, images.values())
        known = None if config.lemur is None else read_lemur(config.lemur, datasets=[*images], recipe=config.recipe)
        grid = product(range(config.seeds), images, arms)
        lanes = [lane_of(arm, name, seed, images[name], training, model) for seed, name, arm in grid]
        run = Run.open(config.out, config.to_json(), may_change=REDONE)
        records = Records(run.folder / TABLES)
        for lane in lanes:
            given = known.networks if known is not None and lane.space is None else ()
            lane.given = tuple(one for one in given if one.dataset == lane.dataset)
            rows = records.proposals(arm=lane.arm.name, dataset=lane.dataset, seed=lane.seed)
            lane.rows = [row for row in rows if row.done and row.number < config.proposals]
        if known is not None and known.refused:
            say(imported_in_words(known))
        return ProposeJob(
            config=config,
            run=run,
            progress=progress,
            say=say,
            records=records,
            attempts=Attempts(run.folder / TABLES),
            images=images,
            lanes=lanes,
            training=training,
            notes=() if known is None else (imported_in_words(known),),
        )

    @property
    def open_rows(self) -> list[tuple[int, Lane]]:
        """What is left to be proposed: number and lane, lanes in turn so that all get as far at any time."""
        return [
            (number, lane)
            for number in range(self.config.proposals)
            for lane in self.lanes
            if not any(row.number == number for row in lane.rows)
        ]

    @contextmanager
    def sandboxes(self) -> Iterator[tuple[Sandbox, Sandbox]]:
        """Where networks are built, and where they are trained: the same place, but for a GPU. Raises `NoSandbox`."""
        with ExitStack() as stack:
            warm = (tasks.warm, fitting.warm)
            building = stack.enter_context(Sandbox(backend=self.config.sandbox, warm=warm))
            training = building
            if self.training.device != "cpu":
                training = stack.enter_context(Sandbox(backend=self.config.sandbox, warm=(), gpu=True))
                reach_gpu(training)
            stack.callback(lambda: [lane.proposer.close() for lane in self.lanes])
            yield building, training

    def gate(self, sandbox: Sandbox, images: Images) -> Gate:
        """The gate for one dataset."""
        return Gate(
            sandbox,
            in_shape=in_shape(self.config, images),
            classes=images.task.classes,
            prm=self.training.prm,
            budget=self.config.bounds,
            recipe=self.config.recipe,
        )

    def begin(self) -> None:
        """From here on the run has something to lose. Raises `RunConflict` if its images are not those that it began with."""
        facts = {name: one.fingerprint for name, one in self.images.items()}
        key = digest("data", facts)
        before = [done.parent.name for done in self.run.folder.glob("stages/data-*/done.json")]
        if before and f"data-{key}" not in before:
            raise RunConflict(
                f"the images of {', '.join(facts)} are not those with which {self.config.out} was begun; give another --out"
            )
        self.run.stage("data", key, lambda folder: write_json(folder / "data.json", facts))


def training_of(config: ProposeConfig, images: Iterable[Images]) -> Training:
    """How every proposal of a run is trained; `device` auto trains on a GPU if one pays. Raises as `found_device`."""
    device = found_device(config.device)
    work = max(config.train.epochs * one.train.images.numel() for one in images)
    if config.device == "auto" and config.train.seconds is None and work < WORTH_A_GPU:
        device = "cpu"
    return Training(
        config=config.train,
        recipe=config.recipe,
        device=device,
        seconds=config.seconds,
        memory_bytes=round(config.memory * GIB),
        prm={**PRM, "batch": config.train.batch, "epoch": config.train.epochs, **config.hyperparameters},
    )


def imported_in_words(known: Imported) -> str:
    """How many networks came from LEMUR, and why other rows did not."""
    left = ", ".join(f"{reason} {count}" for reason, count in sorted(known.refused.items(), key=lambda one: -one[1]))
    told = f"networks of LEMUR that are known from the start: {len(known.networks)}"
    return f"{told}; rows that were left out: {left}" if left else told


def in_shape(config: ProposeConfig, images: Images) -> tuple[int, int, int, int]:
    """What a network is told of its images: a batch of them."""
    task = images.task
    return config.train.batch, task.channels, task.height, task.width
