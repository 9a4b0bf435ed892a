"""What all stages of one search share: the images, the space, the target, the prices."""

import statistics
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from befit.arch.mobile import options_for
from befit.arch.space import Arch
from befit.budget import Budget
from befit.cost.device import found_device
from befit.cost.target import Target
from befit.errors import BadBudget, BadData
from befit.progress import Progress
from befit.rundir import Run, digest, write_json
from befit.search.config import SHARED, SearchConfig, parse_options
from befit.search.pricing import LATENCY, Pricer
from befit.vision.blueprint import Blueprint
from befit.vision.checkpoint import blueprint_of, import_path
from befit.vision.data import Images, load_images
from befit.vision.latency import MeasuredHere, fit_latency, has_model, read_latency
from befit.vision.own import own
from befit.vision.timing import Effort, measure_ms

BUILT_IN = ("cell", "mobile")
"""Spaces that ship with befit."""

FITTED = "latency.json"
"""A fitted model of the target's latency; what `--latency-table` reads on another machine."""

LOOK = Effort(seconds=0.3)
"""For one measurement of one network."""

PHOTO = 224
"""Pixels of each side where images differ in size and none is given: what image networks are usually made for."""

REDONE = ("out", "top", "then", "trials", "workers", "ray", "final", "tune")
"""Settings that may change in an existing run directory: what depends on them is kept under a key of its own."""


@dataclass(kw_only=True)
class SearchJob:
    """One run of `befit search`."""

    config: SearchConfig
    run: Run
    progress: Progress
    say: Callable[[str], None]
    data: Images
    blueprint: Blueprint
    source: str
    """`cell`, `mobile`, or where the user's own class is imported from: what a checkpoint needs to build it again."""
    options: Mapping[str, Any]
    """With which the blueprint was made, likewise."""
    device: str
    """cpu or cuda."""
    build: Callable[..., nn.Module] | None = None
    """The user's own class, where it was given and not named."""

    @staticmethod
    def open(
        config: SearchConfig,
        progress: Progress,
        say: Callable[[str], None],
        *,
        data: Images | None = None,
        build: Callable[..., nn.Module] | None = None,
    ) -> "SearchJob":
        """Read the images and make the space. `data` and `build` stand for the config's `data` and `space` if given."""
        return SearchJob._of(
            config, progress, say, data, build, lambda: Run.open(config.out, config.to_json(), may_change=REDONE)
        )

    @staticmethod
    def revisit(config: SearchConfig, progress: Progress) -> "SearchJob":
        """A finished run once more, for another budget; its record stays as it is."""
        return SearchJob._of(config, progress, warnings.warn, None, None, lambda: Run(folder=config.out))

    @staticmethod
    def _of(
        config: SearchConfig,
        progress: Progress,
        say: Callable[[str], None],
        data: Images | None,
        build: Callable[..., nn.Module] | None,
        enter: Callable[[], Run],
    ) -> "SearchJob":
        budget = None if config.budget is None else Budget.parse(config.budget)
        if budget is not None and any(bound.relative for bound in budget.bounds):
            raise BadBudget(f"budget: {budget} is relative, but a search has no parent; give absolute bounds")
        images = data or images_for(config)
        blueprint, options = space_of(config, images, build)
        device = found_device(config.device)
        run = enter()
        return SearchJob(
            config=config,
            run=run,
            progress=progress,
            say=say,
            data=images,
            blueprint=blueprint,
            source=config.space if build is None else import_path(build),
            options=options,
            device=device,
            build=build,
        )

    @cached_property
    def budget(self) -> Budget | None:
        """Absolute bounds."""
        return None if self.config.budget is None else Budget.parse(self.config.budget)

    @cached_property
    def target(self) -> Target:
        """Where the network is to run."""
        on_gpu = self.device == "cuda" and self.config.engine == "torch"
        return Target(
            engine=self.config.engine, device="cuda" if on_gpu else "cpu", batch=1, threads=self.config.threads
        )

    @property
    def wants_latency(self) -> bool:
        """Whether the budget or an objective is about time."""
        bounds = () if self.budget is None else self.budget.bounds
        return any(bound.cost == LATENCY for bound in bounds) or "latency" in self.config.objectives

    @property
    def key(self) -> list[Any]:
        """Names the images and the space, for the keys of stages."""
        choices = {name: [choice.options, choice.when] for name, choice in self.blueprint.space.choices.items()}
        return [self.data.fingerprint, self.source, dict(self.options), choices]

    @cached_property
    def latency(self) -> Callable[[Arch], float] | None:
        """Predicts the target's milliseconds: read from a table made elsewhere, or a model fitted here, once."""
        table, task = self.config.latency_table, self.data.task
        if table is not None:
            return read_latency(table, self.blueprint, task)
        if not self.wants_latency:
            return None
        if not has_model(self.blueprint):
            # Sub-nets of shared weights are judged in seconds: each is measured before; trials are measured one by one anyway.
            measured = MeasuredHere(blueprint=self.blueprint, task=task, target=self.target, effort=LOOK)
            return measured if self.config.searcher == SHARED else None

        def make(folder: Path) -> None:
            fitted = fit_latency(self.blueprint, task, self.target, seed=self.config.seed, progress=self.progress)
            write_json(folder / FITTED, fitted.to_json())

        folder = self.run.stage("price", digest("price", self.key, self.target.to_json()), make)
        return read_latency(folder / FITTED, self.blueprint, task)

    @cached_property
    def pricer(self) -> Pricer:
        """Prices archs; a latency is predicted first, and measured of what is about to be trained."""
        elsewhere = self.config.latency_table is not None
        return Pricer(
            blueprint=self.blueprint,
            task=self.data.task,
            budget=self.budget,
            latency=self.latency,
            measure=self.measure if self.wants_latency and not elsewhere else None,
        )

    def measure(self, arch: Arch) -> float:
        """Milliseconds of one image on the target: the median of three short looks, so that one hiccup decides nothing."""
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            module = self.blueprint.build(arch, self.data.task)
        looks = [
            measure_ms(
                module,
                self.data.task,
                engine=self.target.engine,
                device=self.target.device,
                threads=self.target.threads,
                effort=LOOK,
            ).median_ms
            for _ in range(3)
        ]
        return statistics.median(looks)


def images_for(config: SearchConfig) -> Images:
    """The images that a configuration names; photographs of different sizes become squares of the usual side."""
    return load_images(config.data, seed=config.seed, size=config.size, mixed=PHOTO)


def space_of(
    config: SearchConfig, data: Images, build: Callable[..., nn.Module] | None
) -> tuple[Blueprint, dict[str, Any]]:
    """The blueprint to search, with the settings it was made with: the user's, or what fits the images."""
    options = parse_options(config.space_options, "space options")
    if build is not None:
        return own(build), {}
    if config.space not in BUILT_IN and ":" not in config.space:
        raise BadData(f'space: expected cell, mobile or "module:Class", got {config.space!r}')
    if not options and config.space == "cell" and min(data.task.height, data.task.width) < 32:
        options = {"channels": 8, "cells": 1}
    if not options and config.space == "mobile":
        options = options_for(data.task)
    return blueprint_of(config.space, options, where="space"), options


def smaller(data: Images, config: SearchConfig) -> Images:
    """What trials see of the images."""
    seen = data.subset(config.share, config.seed)
    return seen if config.side is None else seen.resized(config.side)
