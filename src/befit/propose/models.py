"""What a language model is to befit: something that completes a request, and says what that took.

    class Model(Protocol):
        name: str
        def complete(self, request: Request) -> Completion: ...

A server, local weights, a grammar that only pretends to be a model, and a script for tests all have this form. What goes
wrong is part of the answer: a completion says how it finished and which tries failed before, and `complete` raises only for
what no later call could mend, such as a missing library. All values here are plain and survive JSON.
"""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, get_args

from befit.errors import BadData
from befit.rundir import digest

Role = Literal["system", "user", "assistant"]

Finish = Literal["stop", "length", "empty", "filtered", "junk", "too-long", "refused", "rate-limit", "outage", "memory"]
"""How a call ended: with an answer, complete ("stop") or cut off ("length"); with none, of white space or nothing ("empty"),
withheld by the server ("filtered") or not in the protocol's form ("junk"); because the prompt exceeds the context ("too-long");
because the server will not have the request however often it is sent ("refused"); because after all tries it was still busy
("rate-limit"), could not be reached, or failed ("outage"); because local weights ran out of memory ("memory")."""

ANSWERED: frozenset[Finish] = frozenset({"stop", "length", "empty", "filtered"})
"""The ways to finish that are the model's own answer: sending the request again would only cost again."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Role
    """system, user or assistant."""
    content: str
    """Its text."""

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise BadData(f"message: role must be one of {', '.join(get_args(Role))}, got {self.role!r}")


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything that an answer depends on, but for the model."""

    messages: tuple[Message, ...]
    """The conversation so far, at least one message."""
    temperature: float = 0.8
    """Logits are divided by it, 0 or more; 0 always takes the likeliest token."""
    top_p: float = 1.0
    """Tokens are drawn from the likeliest ones that together have this probability, above 0, at most 1."""
    max_tokens: int = 4096
    """Tokens after which the answer is cut off, at least 1."""
    seed: int = 0
    """Of the draws, 0 or more: requests that differ in nothing else are different samples."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer; they are no part of it."""

    def __post_init__(self) -> None:
        if not self.messages:
            raise BadData("request: needs at least one message")
        if not self.temperature >= 0 or not 0 < self.top_p <= 1:
            raise BadData(
                f"request: temperature must be 0 or more and top_p in (0, 1], got {self.temperature}, {self.top_p}"
            )
        if self.max_tokens < 1 or self.seed < 0:
            raise BadData(
                f"request: max_tokens must be at least 1 and seed 0 or more, got {self.max_tokens}, {self.seed}"
            )

    def key(self, model: str) -> str:
        """A name for this request to the model of this name: equal requests, equal names, in any process."""
        return digest("request", model, asdict(self))

    @staticmethod
    def of(data: Mapping[str, Any]) -> "Request":
        """The request of which `dataclasses.asdict` made this."""
        messages = tuple(Message(**one) for one in data["messages"])
        return Request(**{**data, "messages": messages, "stop": tuple(data["stop"])})


@dataclass(frozen=True, kw_only=True)
class Try:
    """A call that failed and was made again, or not any more."""

    reason: Finish
    """rate-limit, outage or refused."""
    said: str
    """What the server or the connection said, one line."""
    seconds: float
    """Until it failed."""
    waited: float = 0.0
    """Seconds of rest before the next try."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What came back, and what it took."""

    text: str = ""
    """The answer."""
    finish: Finish = "stop"
    """How it ended."""
    prompt_tokens: int | None = None
    """Tokens read; None where the server does not say."""
    completion_tokens: int | None = None
    """Tokens written; None where the server does not say."""
    seconds: float = 0.0
    """Of all tries together, rests included."""
    price: float | None = None
    """In the currency of the prices given; None where they, or the tokens, are not known."""
    said: str = ""
    """What the server said, where there is no answer: one line."""
    tries: tuple[Try, ...] = ()
    """The tries that failed, in order."""

    def __post_init__(self) -> None:
        if self.finish not in get_args(Finish):
            raise BadData(f"completion: finish must be one of {', '.join(get_args(Finish))}, got {self.finish!r}")

    @property
    def answered(self) -> bool:
        """Whether this is the model's own answer, good or not: what a repeated run may reuse."""
        return self.finish in ANSWERED

    @staticmethod
    def of(data: Mapping[str, Any]) -> "Completion":
        """The completion of which `dataclasses.asdict` made this."""
        return Completion(**{**data, "tries": tuple(Try(**one) for one in data["tries"])})


@dataclass(frozen=True, kw_only=True)
class Price:
    """What tokens cost, per million, in any one currency."""

    read: float
    """Of a million tokens of prompt, 0 or more."""
    written: float
    """Of a million tokens of answer, 0 or more."""

    def __post_init__(self) -> None:
        if not self.read >= 0 or not self.written >= 0:
            raise BadData(f"price: per million tokens, 0 or more, got {self.read} read, {self.written} written")

    def of(self, prompt_tokens: int | None, completion_tokens: int | None) -> float | None:
        """The price of a call; None if its tokens are not known."""
        if prompt_tokens is None or completion_tokens is None:
            return None
        return (prompt_tokens * self.read + completion_tokens * self.written) / 1e6


class Model(Protocol):
    """Something that completes requests."""

    @property
    def name(self) -> str:
        """What answers depend on beside the request: models of equal name give (samples of) the same answers."""
        ...

    def complete(self, request: Request) -> Completion:
        """Answer. Raises nothing for what a network, a server or a model may do: `Completion.finish` tells."""
        ...


@dataclass(kw_only=True)
class Scripted:
    """A model that answers from a script: for tests, and as a shell around any function that draws a text.

    `Scripted(name="coin", write=lambda request, rng: rng.choice(("heads", "tails")))`
    """

    write: Callable[[Request, random.Random], str | Completion]
    """The answer, or the completion as it is; `rng` is seeded with the request's seed."""
    name: str = "script"
    """Its name."""
    asked: list[Request] = field(default_factory=list[Request])
    """The requests so far."""

    def complete(self, request: Request) -> Completion:
        """Answer from the script; tokens are words."""
        begin = time.perf_counter()
        self.asked.append(request)
        made = self.write(request, random.Random(request.seed))
        if isinstance(made, Completion):
            return made
        return Completion(
            text=made,
            finish="stop" if made.strip() else "empty",
            prompt_tokens=sum(len(one.content.split()) for one in request.messages),
            completion_tokens=len(made.split()),
            seconds=time.perf_counter() - begin,
        )


def script(*answers: str | Completion) -> Scripted:
    """A model that gives these answers in turn; asked once more, it starts again."""
    model = Scripted(write=lambda _request, _rng: answers[(len(model.asked) - 1) % len(answers)])
    return model


def one_line(text: str, length: int = 300) -> str:
    """A text on one line, cut to a length: what a row or a message can hold."""
    flat = " ".join(text.split())
    return flat if len(flat) <= length else flat[: length - 1] + "…"
