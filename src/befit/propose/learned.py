"""`--llm learn`: a small decoder that learns, during a run, to write the networks that do well in it.

    grammar samples ─ warm-up (syntax) ─┐
    first proposals, from the grammar ──┴─ scored ─ levels ─ fine-tune ─ ask for the best level ─ scored ─ levels ─ …

The warm-up teaches a decoder of a quarter of a million weights, with random ones to start with, to write Python that builds: it
reads unscored samples of the grammar. The first proposals of the run are samples too. After every `every` proposals a
generation is made: the warm-up's weights are trained on all networks scored so far, each marked with its decile, the elites
more often than the others and mixed with unscored samples, and asked for the best decile. That is the cross-entropy method
(Rubinstein 1999; de Boer et al. 2005, section 2.2) with a language model as the family of distributions. Some proposals keep
coming from the grammar, as exploration.

A generation is a function of the seed, the configuration and the rows before it. It starts from the warm-up, not from the
generation before, so that errors do not add up and any generation can be made without the others.
"""

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from befit.arch.space import Space
from befit.cost.device import found_device
from befit.errors import BadData
from befit.propose import decoder, genome
from befit.propose.archive import Scored
from befit.propose.decoder import DecoderConfig, Schedule
from befit.propose.elites import LEVELS, pupils
from befit.propose.grammar import Bounds, draw
from befit.propose.local import LocalModel
from befit.propose.models import Completion, Message, Model, Request, Scripted
from befit.propose.prompt import estimate, fenced, stripped
from befit.propose.rendering import render
from befit.rundir import digest, read_json, replacing_folder, write_json


@dataclass(frozen=True, kw_only=True)
class LearnConfig:
    """How the decoder learns."""

    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """Its sizes."""
    samples: int = 2000
    """Samples of the grammar in the warm-up, at least 1."""
    warmup: Schedule = field(default_factory=lambda: Schedule(steps=600, batch=16, lr=8e-3))
    """Training on them."""
    every: int = 20
    """Proposals of a generation, at least 1; those of the first are the grammar's."""
    tuning: Schedule = field(default_factory=lambda: Schedule(steps=80, batch=16, lr=1e-3))
    """Training of each generation."""
    elite: float = 0.2
    """Share of the scored networks that are elites, above 0, at most 1."""
    elite_weight: float = 4.0
    """How often an elite is drawn in training, another scored network being drawn once; at least 1."""
    replay: float = 0.5
    """Share of the texts drawn that are unscored samples of the grammar, at least 0, below 1: against forgetting."""
    temperature: float = 1.0
    """Logits are divided by it, above 0. A request's own temperature is meant for models that follow a prompt."""
    explore: float = 0.1
    """Share of proposals after the first generation that the grammar makes, 0 .. 1."""

    def __post_init__(self) -> None:
        if min(self.samples, self.every) < 1 or not self.elite_weight >= 1 or not self.temperature > 0:
            raise BadData(
                "learn: samples, every and elite_weight must be at least 1 and the temperature above 0, got "
                f"{self.samples}, {self.every}, {self.elite_weight} and {self.temperature}"
            )
        if not 0 < self.elite <= 1 or not 0 <= self.replay < 1 or not 0 <= self.explore <= 1:
            raise BadData(
                "learn: elite must be above 0 and at most 1, replay at least 0 and below 1, explore 0 .. 1, got "
                f"{self.elite}, {self.replay} and {self.explore}"
            )


class Decoder:
    """A generation as a model. It reads no prompt: what it knows of the run is in its weights."""

    def __init__(self, inner: LocalModel, temperature: float) -> None:
        self.inner, self.temperature = inner, temperature
        self.name = f"learn:{inner.name}@{temperature:g}"

    def complete(self, request: Request) -> Completion:
        """Write a network. Requests that differ in anything, as a first try and the retry do, are different draws."""
        seed = int(digest("learn", asdict(request)), 16) % 2**63
        own = replace(request, seed=seed, temperature=self.temperature, top_p=1.0)
        return self.inner.complete(own)


@dataclass(frozen=True, kw_only=True)
class Language:
    """The texts that are to be learned: where samples come from, and the one form in which texts are written."""

    name: str
    """Of equal names are equal samples."""
    sample: Callable[[random.Random], str]
    """Draws a text."""
    plain: Callable[[str], str]
    """A text in the form of the samples, as far as it can be brought into it."""
    mark: str = "python"
    """Of a code block around a text."""


def networks(bounds: Bounds, *, recipe: bool = False) -> Language:
    """Files of the grammar within bounds, all in one style; with `recipe` they bring their own training."""
    plain = partial(stripped, recipe=recipe)
    return Language(
        name=f"networks:{digest(asdict(bounds), recipe)}",
        sample=lambda rng: plain(render(draw(rng, bounds))),
        plain=plain,
    )


def genomes(space: Space) -> Language:
    """Archs of a space as JSON, drawn evenly."""
    told = {name: list(one.options) for name, one in space.choices.items()}
    return Language(
        name=f"genomes:{digest(told)}",
        sample=lambda rng: genome.shown(space.sample(rng)),
        plain=lambda text: json.dumps(json.loads(text), indent=1),
        mark="json",
    )


class Learned:
    """The proposer: which model makes a proposal, the grammar or a generation of the decoder."""

    elsewhere = False
    """It computes here."""

    def __init__(self, config: LearnConfig, language: Language, *, seed: int, device: str = "auto") -> None:
        """Nothing is drawn or trained yet; `device` is auto (a CUDA device if there is one), cpu or cuda."""
        self.config, self.language, self.seed = config, language, seed
        self.device = found_device(device)
        self.grammar: Model = Scripted(write=self._sample, name=f"samples:{language.name}")
        self._last: tuple[str, Decoder] | None = None

    def model(self, number: int, scored: Sequence[Scored], folder: Path) -> Model:
        """The model that makes proposal `number`. What it was trained to be is under `folder`, and is read if it is there.

        `scored` are the run's networks so far; only those of earlier generations are learned from.
        """
        generation = number // self.config.every
        rows = [one for one in scored if one.number < generation * self.config.every]
        explores = random.Random(f"{self.seed} explore {number}").random() < self.config.explore
        if generation == 0 or explores or not rows:
            return self.grammar
        return self.generation(generation, rows, folder)

    def heard(self, number: int, prompt: Sequence[Message], answer: str, folder: Path) -> None:
        """It learns from networks alone."""

    def count(self, text: str) -> int:
        """Tokens of a text, about: no prompt is read."""
        return estimate(text)

    def close(self) -> None:
        """Let go of the weights."""
        self._last = None

    def generation(self, generation: int, rows: Sequence[Scored], folder: Path) -> Decoder:
        """The decoder that has learned from these rows, read from `folder` or made there."""
        place = folder / f"generation-{generation}"
        told = [(one.number, one.key, one.text, one.accuracy) for one in sorted(rows, key=lambda one: one.number)]
        key = digest("generation", asdict(self.config), self.language.name, self.seed, generation, told)
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        if _record(place).get("key") != key:
            self._tune(generation, rows, folder, key)
        weights, tokenizer = decoder.load(place)
        tokenizer.chat_template = decoder.level_token(LEVELS - 1)
        inner = LocalModel(weights.to(self.device), tokenizer, label=f"generation-{generation}")
        made = Decoder(inner, self.config.temperature)
        self._last = key, made
        return made

    def _tune(self, generation: int, rows: Sequence[Scored], folder: Path, key: str) -> None:
        begin = time.perf_counter()
        weights, tokenizer, replayed = self._warmed(folder)
        config, learners = self.config, pupils(rows, share=self.config.elite)
        learned = [decoder.encode(tokenizer, self.language.plain(one.scored.text), one.level) for one in learners]
        weighed = [
            (row, config.elite_weight if one.elite else 1.0)
            for one, row in zip(learners, learned, strict=True)
            if len(row) <= config.decoder.context
        ]
        scale = (1 - config.replay) / (sum(weight for _, weight in weighed) or 1.0)
        shares = [weight * scale for _, weight in weighed] + [config.replay / len(replayed)] * len(replayed)
        encoded = [row for row, _ in weighed] + replayed
        loss = decoder.train(weights, encoded, shares, config.tuning, self._seed(f"tune {generation}"))
        told = {"generation": generation, "rows": len(weighed), "elites": sum(one.elite for one in learners)}
        self._keep(folder / f"generation-{generation}", weights, tokenizer, key, {**told, "loss": loss}, begin)

    def _warmed(self, folder: Path) -> tuple[Any, Any, list[list[int]]]:
        """A decoder that can write, its tokenizer, and the samples that it has read, encoded."""
        config, place, begin = self.config, folder / "warm-up", time.perf_counter()
        key = digest(
            "warm-up", *map(asdict, (config.decoder, config.warmup)), config.samples, self.language.name, self.seed
        )
        rng = random.Random(f"{self.seed} samples")
        texts = [self.language.sample(rng) for _ in range(config.samples)]
        if _record(place).get("key") != key:
            tokenizer = decoder.make_tokenizer(texts, config.decoder.vocab)
            weights = decoder.make_model(config.decoder, len(tokenizer), self._seed("weights")).to(self.device)
            fitting = self._fitting(tokenizer, texts)
            loss = decoder.train(weights, fitting, [1.0] * len(fitting), config.warmup, self._seed("warm-up"))
            told = {"params": weights.num_parameters(), "samples": len(fitting), "loss": loss}
            self._keep(place, weights, tokenizer, key, told, begin)
        weights, tokenizer = decoder.load(place)
        return weights.to(self.device), tokenizer, self._fitting(tokenizer, texts)

    def _keep(self, place: Path, weights: Any, tokenizer: Any, key: str, told: Mapping[str, Any], begin: float) -> None:
        with replacing_folder(place) as temporary:
            decoder.save(weights, tokenizer, temporary)
            write_json(temporary / RECORD, {"key": key, **told, "seconds": round(time.perf_counter() - begin, 3)})

    def _fitting(self, tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
        rows = [decoder.encode(tokenizer, text) for text in texts]
        return [row for row in rows if len(row) <= self.config.decoder.context]

    def _sample(self, _request: Request, rng: random.Random) -> Completion:
        """No tokens: nothing is read, or written one by one."""
        begin = time.perf_counter()
        text = fenced(self.language.sample(rng), self.language.mark) + "\n"
        seconds = time.perf_counter() - begin
        return Completion(text=text, prompt_tokens=0, completion_tokens=0, price=0.0, seconds=seconds)

    def _seed(self, what: str) -> int:
        return random.Random(f"{self.seed} {what}").randrange(2**31)


RECORD = "learned.json"
"""What is known of a folder of weights; the key says from what they were made."""


def _record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    return read_json(path) if path.exists() else {}
