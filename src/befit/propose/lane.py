"""A lane: one arm on one dataset with one seed.

Lanes know nothing of each other: each has its own archive, and makes proposal after proposal from what it has seen itself.
"""

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from befit.arch.mobile import options_for
from befit.arch.space import Space
from befit.propose import genome
from befit.propose.archive import Scored
from befit.propose.arms import Arm
from befit.propose.config import ProposeConfig
from befit.propose.funnel import is_trained
from befit.propose.judge import Training, guessing
from befit.propose.models import Model
from befit.propose.prompt import Task
from befit.propose.proposal import Known, Proposal
from befit.propose.proposers import Fixed, Proposer, proposer_of
from befit.rundir import digest
from befit.vision.checkpoint import blueprint_of
from befit.vision.data import Images


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
        """As a folder has it."""
        told = "-".join(part for part in (self.arm.name, self.dataset, str(self.seed)) if part)
        return re.sub(r"[^\w.=-]+", "-", told).strip("-")

    def rng(self, number: int, what: str) -> random.Random:
        """Draws for one purpose of one proposal, the same in any process."""
        return random.Random(self.seed_of(number, what))

    def seed_of(self, number: int, what: str) -> int:
        """A seed that no other purpose, proposal or lane has."""
        return int(digest("seed", what, self.arm.name, self.dataset, self.seed, number)[:7], 16)

    def scored(self, before: int) -> list[Scored]:
        """The networks that were trained before proposal `before`, and those known from the start."""
        return [*self.given, *(self._scored(row) for row in self.rows if row.number < before and is_trained(row))]

    def _scored(self, row: Proposal) -> Scored:
        text = genome.shown(self.space.arch(genome.arch_in(row.source))) if self.space is not None else row.source
        return Scored(
            number=row.number,
            key=row.graph or row.tree,
            text=text,
            dataset=self.dataset,
            accuracy=row.accuracy or 0.0,
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


def lane_of(arm: Arm, dataset: str, seed: int, images: Images, training: Training, model: Model | None) -> Lane:
    """A lane in which nothing was proposed yet."""
    config, task = arm.config, images.task
    space, options = space_of(config, images)
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
        proposer=Fixed(one=model) if model is not None else proposer_of(config, task, space, seed),
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


def space_of(config: ProposeConfig, images: Images) -> tuple[Space | None, Mapping[str, Any]]:
    """The space of genomes and the options with which it was made; None where code is asked for."""
    if config.form != "genome":
        return None, {}
    small = min(images.task.height, images.task.width) < 16
    options = {"cell": {"cells": 1} if small else {}, "mobile": options_for(images.task)}[config.space]
    return blueprint_of(config.space, options).space, options
