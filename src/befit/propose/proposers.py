"""Who proposes: befit's grammar, a server, local weights, or a small model that learns on the way; each is a `Proposer`.

grammar            draws at random within the budget: needs no model, and is the control of every comparison
http://… , https   any server that speaks OpenAI's chat protocol, with --model
hf:PATH            a causal model of transformers in this process
lora:PATH          the same, tuned on the best of its own answers (`befit.propose.lora`)
learn              a small decoder trained in place, then on its own elites (`befit.propose.learned`)
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Protocol

from befit.arch.space import Space
from befit.arch.task import ImageTask
from befit.budget import Budget
from befit.errors import BefitError, IllegalArch
from befit.propose import genome
from befit.propose.archive import Scored
from befit.propose.config import ProposeConfig
from befit.propose.grammar import Bounds, draw
from befit.propose.learned import Learned, genomes, networks
from befit.propose.models import Completion, Message, Model, Price, Request
from befit.propose.prompt import estimate, fenced
from befit.propose.rendering import Style, render
from befit.rundir import digest

UNREACHABLE = frozenset({"outage", "refused"})
"""Ways to finish that say, at the start, that nobody is there."""


class Proposer(Protocol):
    """Where proposals come from."""

    @property
    def elsewhere(self) -> bool:
        """Whether its model computes on another machine, or in another process, and may be asked from any thread."""
        ...

    def model(self, number: int, scored: Sequence[Scored], folder: Path) -> Model:
        """The model that makes proposal `number`, given the networks scored so far; it may keep what it learns in `folder`."""
        ...

    def heard(self, number: int, prompt: Sequence[Message], answer: str, folder: Path) -> None:
        """Take note of what was asked for a proposal first and of what came last, from the model or from what is kept of it."""
        ...

    def count(self, text: str) -> int:
        """Tokens of a text, about."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """The same model for every proposal."""

    one: Model
    """The model."""
    tokens: Callable[[str], int] = estimate
    """Counts."""
    elsewhere: bool = False
    """Whether the model is a server."""
    end: Callable[[], None] = lambda: None
    """What is left to be done at the end."""

    def model(self, number: int, scored: Sequence[Scored], folder: Path) -> Model:
        """That model."""
        del number, scored, folder
        return self.one

    def heard(self, number: int, prompt: Sequence[Message], answer: str, folder: Path) -> None:
        """Nothing is learned from it."""

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return self.tokens(text)

    def close(self) -> None:
        """Give back what it holds."""
        self.end()


class Grammar:
    """A model that reads nothing and draws a network at random: by the seed of the request, in a style of its own."""

    def __init__(self, bounds: Bounds, space: Space | None = None) -> None:
        """Draws within the bounds, or archs of a space as JSON. Raises `IllegalArch` if the bounds leave nothing."""
        draw(random.Random(0), bounds)
        self.bounds, self.space = bounds, space
        told = asdict(bounds) if space is None else {name: list(one.options) for name, one in space.choices.items()}
        self.name = f"grammar#{digest(told)[:8]}"

    def complete(self, request: Request) -> Completion:
        """A network in a code block; no tokens, for nothing is read or written one by one."""
        begin, rng = time.perf_counter(), random.Random(request.seed)
        try:
            text = fenced(*self._drawn(rng))
        except IllegalArch as error:
            return Completion(finish="junk", said=str(error), seconds=time.perf_counter() - begin)
        return Completion(
            text=text, prompt_tokens=0, completion_tokens=0, price=0.0, seconds=time.perf_counter() - begin
        )

    def _drawn(self, rng: random.Random) -> tuple[str, str]:
        if self.space is not None:
            return genome.shown(self.space.sample(rng)), "json"
        plan = draw(rng, self.bounds)
        return render(plan, Style.draw(rng)), "python"


def bounds_for(task: ImageTask, budget: Budget | None) -> Bounds:
    """What the grammar may draw for images of a task: at most the budget's parameters."""
    params = [bound.value for bound in budget.bounds if bound.cost == "params"] if budget is not None else []
    most = int(min([Bounds().params, *params]))
    shape = (2, task.channels, task.height, task.width)
    small = tuple(width for width in (4, *Bounds().widths) if most >= 20_000 or width <= 24)
    return Bounds(in_shape=shape, classes=task.classes, params=most, widths=small)


def reach(config: ProposeConfig) -> None:
    """Ask a server for one word, once; others are here. Raises `BefitError` that says what to do if nobody answers."""
    if not config.llm.startswith("http"):
        return
    proposer = server(replace(config, patience=0.0))
    request = Request(messages=(Message(role="user", content="Say OK."),), max_tokens=16, temperature=0.0)
    try:
        told = proposer.one.complete(request)
    finally:
        proposer.close()
    if told.finish in UNREACHABLE:
        raise BefitError(
            f"the model {proposer.one.name} does not answer ({told.said}); start the server, or correct --llm (the address up to "
            "and with /v1), --model (its name there) or the key in the variable of --key-variable, then run the command again"
        )


def server(config: ProposeConfig) -> Fixed:
    """The model behind a server. Raises `BefitError` without the client or a name, `BadData` for a bad address."""
    from befit.propose.client import Server, ServerConfig

    if not config.model:
        raise BefitError(f"--llm {config.llm} is a server: --model NAME must say which of its models is meant")
    one = Server(
        ServerConfig(
            url=config.llm,
            model=config.model,
            key_variable=config.key_variable,
            timeout=config.timeout,
            patience=config.patience,
            extra=config.extra,
            price=config.price,
        )
    )
    return Fixed(one=one, elsewhere=True, end=one.close)


@cache
def local(path: str, device: str, price: Price | None) -> Fixed:
    """Local weights, loaded once. Raises `UnsupportedModel` if there are none that can be loaded."""
    from befit.propose.local import load

    loaded = load(path, device=device, price=price)
    return Fixed(one=loaded, tokens=loaded.count)


def proposer_of(config: ProposeConfig, task: ImageTask, space: Space | None, seed: int) -> Proposer:
    """Who proposes in this arm. Raises `BefitError`, `BadData`, `IllegalArch` or `UnsupportedModel` if nobody can."""
    if config.llm == "grammar":
        return Fixed(one=Grammar(bounds_for(task, config.bounds), space))
    if config.llm == "learn":
        bounds = bounds_for(task, config.bounds)
        language = networks(bounds, recipe=config.recipe) if space is None else genomes(space)
        return Learned(config.learn, language, seed=seed, device=config.device)
    if config.llm.startswith("lora:"):
        from befit.propose.local import load
        from befit.propose.lora import Tuned

        base = load(config.llm.removeprefix("lora:"), device=config.device, price=config.price)
        return Tuned(base, config.tune, seed=seed)
    if config.llm.startswith("hf:"):
        return local(config.llm.removeprefix("hf:"), config.device, config.price)
    return server(config)
