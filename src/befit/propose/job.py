"""What all proposals of one run share: the run directory, the images, the sandboxes, and the lanes in which they are made.

A lane is an arm on a dataset with a seed. Lanes know nothing of each other: each has its own archive, and makes proposal
after proposal from what it has seen itself.
"""

import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from typing import Any

import torch

from befit.arch.mobile import options_for
from befit.arch.space import Space
from befit.errors import BadProposal, BefitError, RunConflict
from befit.progress import Progress, silent
from befit.propose import fitting, genome
from befit.propose.archive import Scored
from befit.propose.arms import Arm, arms_of
from befit.propose.attempts import Attempts
from befit.propose.config import ProposeConfig
from befit.propose.fingerprint import runs, similarity
from befit.propose.gate import Gate, checked
from befit.propose.judge import PRM, Training, guessing, reach_gpu
from befit.propose.lemur import Imported, read_lemur
from befit.propose.models import Model
from befit.propose.prompt import Task
from befit.propose.proposal import Known, Proposal
from befit.propose.proposers import Fixed, Proposer, proposer_of
from befit.propose.records import Records
from befit.propose.sandbox import tasks
from befit.propose.sandbox.box import Sandbox
from befit.rundir import Run, digest, write_json
from befit.vision.blueprint import Blueprint
from befit.vision.checkpoint import blueprint_of
from befit.vision.data import Images, load_images

TABLES = "proposals.sqlite"
"""The file with the proposals and the attempts of a run."""

REDONE = (
    "out", "proposals", "seeds", "cache", "patience", "timeout", "key_variable", "prices", "device", "final", "memory",
)  # fmt: skip
"""Settings that may change in an existing run directory."""

GIB = 2**30


@dataclass(kw_only=True)
class Lane:
    """One arm on one dataset with one seed."""

    arm: Arm
    dataset: str
    seed: int
    images: Images
    threshold: float
    """Accuracy that a network must exceed to be above chance."""
    task: Task
    """What the model is told."""
    proposer: Proposer
    space: Space | None
    """Of genomes."""
    options: Mapping[str, Any]
    """With which that space was made."""
    given: tuple[Scored, ...] = ()
    """Networks known from the start."""
    rows: list[Proposal] = field(default_factory=list[Proposal])
    """What was proposed so far, in order."""

    @property
    def name(self) -> str:
        """For a folder and a message."""
        return "-".join(part for part in (self.arm.name, self.dataset, str(self.seed)) if part)

    def rng(self, number: int, what: str) -> random.Random:
        """Draws for one purpose of one proposal, the same in any process."""
        return random.Random(self.seed_of(number, what))

    def seed_of(self, number: int, what: str) -> int:
        """A seed that no other purpose, proposal or lane has."""
        return int(digest("seed", what, self.arm.name, self.dataset, self.seed, number)[:7], 16)

    def scored(self, before: int) -> list[Scored]:
        """The networks that were trained before proposal `before`, and those known from the start."""
        rows = [row for row in self.rows if row.number < before and row.accuracy is not None and row.same_as is None]
        return [*self.given, *(self._scored(row, row.accuracy) for row in rows if row.accuracy is not None)]

    def _scored(self, row: Proposal, accuracy: float) -> Scored:
        text = genome.shown(self.space.arch(genome.arch_in(row.source))) if self.space is not None else row.source
        return Scored(
            number=row.number,
            key=row.graph or row.tree,
            text=text,
            dataset=self.dataset,
            accuracy=accuracy,
            note="" if row.params is None else f"{row.params:,} parameters",
        )

    def seen(self, number: int) -> Callable[[str, str], Known | None]:
        """What the gate asks: the network known from the start, or the first proposal before this one, that has the key."""

        def look(rung: str, key: str) -> Known | None:
            for one in self.given:
                if rung == "tree" and key == one.key:
                    return Known(number=one.number, accuracy=one.accuracy)
            for row in self.rows:
                own = row.tree if rung == "tree" else row.graph
                if row.number < number and own and key in (own, f"{own}+{row.recipe}"):
                    first = row.number if row.same_as is None else row.same_as
                    return Known(number=first, accuracy=row.accuracy, reason=row.reason)
            return None

        return look


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
        training = training_of(config)
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


def training_of(config: ProposeConfig) -> Training:
    """How every proposal of a run is trained. Raises `BefitError` for a GPU that is not there."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise BefitError(f"no CUDA device: torch {torch.__version__} finds none here; use device cpu or auto")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
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
    told = f"{len(known.networks)} networks of LEMUR are known from the start"
    return f"{told}; rows that were left out, by reason: {left}" if left else told


def lane_of(arm: Arm, dataset: str, seed: int, images: Images, training: Training, model: Model | None) -> Lane:
    """A lane in which nothing was proposed yet."""
    config, task = arm.config, images.task
    blueprint, options = space_of(config, images)
    space = blueprint.space if blueprint is not None else None
    return Lane(
        arm=arm,
        dataset=dataset,
        seed=seed,
        images=images,
        threshold=guessing(images.validation.labels),
        task=Task(
            dataset=dataset,
            images=(task.channels, task.height, task.width),
            classes=task.classes,
            training=training_in_words(training),
            budget=config.budget or "",
        ),
        proposer=Fixed(one=model) if model is not None else proposer_of(config, task, space, training.device, seed),
        space=space,
        options=options,
    )


def training_in_words(training: Training) -> str:
    """What a model is told of it: one sentence, and the hyper-parameters."""
    config, values = training.config, ", ".join(f"{name}={value:g}" for name, value in training.prm.items())
    if training.recipe:
        return f"It trains itself: learn is called for {config.epochs} epochs. prm holds {values}."
    length = f"{config.seconds:g} s" if config.seconds else f"{config.epochs} epochs"
    return (
        f"It is trained for you, from fresh weights, for {length} with {config.optimizer}, batches of {config.batch} and a "
        f"cosine schedule. prm holds {values}."
    )


def in_shape(config: ProposeConfig, images: Images) -> tuple[int, int, int, int]:
    """What a network is told of its images: a batch of them."""
    task = images.task
    return config.train.batch, task.channels, task.height, task.width


def space_of(config: ProposeConfig, images: Images) -> tuple[Blueprint | None, Mapping[str, Any]]:
    """The space of genomes and the options with which it was made; None where code is asked for."""
    if config.form != "genome":
        return None, {}
    small = min(images.task.height, images.task.width) < 16
    options = {"cell": {"cells": 1} if small else {}, "mobile": options_for(images.task)}[config.space]
    return blueprint_of(config.space, options), options


def similar(a: Scored, b: Scored) -> float:
    """How alike two networks are, 0 .. 1: shared runs of their trees, or shared lines of their genomes."""
    return similarity(_pieces(a.text), _pieces(b.text))


@lru_cache(maxsize=4096)
def _pieces(text: str) -> frozenset[int]:
    try:
        return runs(text)
    except BadProposal:
        return frozenset(hash(line) for line in text.splitlines())
