"""A model behind a server that speaks OpenAI's chat protocol: vLLM, llama.cpp, Ollama, `transformers serve`, or a service.

Servers are busy, go down and come back. A call that meets that is made again after a rest, twice as long each time and no
longer than `longest_rest`, until `patience` is used up; each failure stays on record. What a server refuses for good is not
repeated, with one exception: a sampling setting that it does not know is left out from then on.

The key of the service is read from the environment when the client is made, and is nowhere else: configurations hold the
name of the variable, and whatever a server says is searched for the key before anyone sees it.
"""

import json
import os
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from befit.errors import BadData, BefitError
from befit.propose.models import Completion, Finish, Price, Request, Try, one_line

HIDDEN = "[key]"
"""What stands in place of the key in what a server said."""

OPTIONAL = ("temperature", "top_p", "seed", "stop")
"""Settings that a server may not know and the request survives without."""

TOO_LONG = re.compile(r"context.{0,20}(length|window|size)|maximum.{0,20}(length|tokens)|too (long|many tokens)", re.I)
"""How servers say that a prompt exceeds the context: llama.cpp, vLLM and OpenAI each have their own words."""


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Where the model is, and how patient to be with it."""

    url: str
    """The address up to and with /v1."""
    model: str
    """The model's name there."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the service's key; local servers need none."""
    timeout: float = 600.0
    """Seconds without a byte after which a call counts as failed; above 0."""
    patience: float = 900.0
    """Seconds over which a call that fails is made again; 0 tries once."""
    rest: float = 1.0
    """Seconds before the second try, above 0; twice as long before each further one, less up to a half at random."""
    longest_rest: float = 60.0
    """Seconds a rest lasts at most; a server that asks for more is heeded."""
    extra: str = ""
    """A JSON object with further fields of each request, in the server's own words: vLLM's `structured_outputs`, a template's
    `chat_template_kwargs`. `transformers serve` heeds temperatures only if the model's generation_config.json says
    do_sample, or this says so: {"generation_config": "{\"do_sample\": true}"}."""
    price: Price | None = None
    """What its tokens cost; None if unknown."""

    def __post_init__(self) -> None:
        told = urlsplit(self.url)
        if told.scheme not in ("http", "https") or not told.hostname:
            raise BadData("server: url must look like http://localhost:8000/v1 (scheme, host, path)")
        if told.username or told.password or told.query:
            raise BadData(
                "server: the url must hold no user, password or query: configurations are written to files. "
                "Put the key into an environment variable and name it in key_variable"
            )
        for name in ("timeout", "rest", "longest_rest"):
            if not getattr(self, name) > 0:
                raise BadData(f"server: {name} must be above 0 seconds, got {getattr(self, name)!r}")
        if not self.patience >= 0:
            raise BadData(f"server: patience must be 0 seconds or more, got {self.patience!r}")
        if not isinstance(self.fields, dict):
            raise BadData(f"server: extra must be a JSON object, got {one_line(self.extra, 80)}")

    @property
    def fields(self) -> dict[str, Any]:
        """What `extra` adds to a request. Raises `BadData` if it is no JSON."""
        try:
            return json.loads(self.extra or "{}")
        except ValueError as error:
            raise BadData(f"server: extra must be a JSON object, got {one_line(self.extra, 80)}") from error


class Server:
    """A model behind a server. Threads may share it."""

    def __init__(self, config: ServerConfig, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._openai = _openai()
        self.config = config
        self._key = os.environ.get(config.key_variable, "")
        self._sleep = sleep
        self._unknown = set[str]()
        self._lock = threading.Lock()
        self._closed = False
        self._client = self._openai.OpenAI(
            base_url=config.url, api_key=self._key or "none", timeout=config.timeout, max_retries=0
        )

    @property
    def name(self) -> str:
        """The model's name, where it is (another server may have another precision), and what requests have beside."""
        extra = f" with {self.config.extra}" if self.config.extra else ""
        return f"{self.config.model} at {self.config.url.rstrip('/')}{extra}"

    def __repr__(self) -> str:
        return f"Server({self.name!r})"

    def close(self) -> None:
        """Give the connections back; a call that is under way in another thread is made no more."""
        self._closed = True
        self._client.close()

    def complete(self, request: Request) -> Completion:
        """Ask until there is an answer, a refusal, or no patience left."""
        tries, begin = list[Try](), time.monotonic()
        jitter = random.Random(request.seed)
        while True:
            start = time.monotonic()
            found = self._once(request)
            if isinstance(found, Completion):
                return replace(found, seconds=time.monotonic() - begin, tries=tuple(tries))
            rest = max(found.wanted, self._rest(len(tries)) * (1 - jitter.random() / 2)) if found.again else 0.0
            if found.setting and found.setting not in self._unknown:
                with self._lock:
                    self._unknown.add(found.setting)
                rest = 0.0
            elif not found.again or self._closed or time.monotonic() - begin + rest > self.config.patience:
                tries.append(Try(reason=found.reason, said=found.said, seconds=time.monotonic() - start))
                spent = time.monotonic() - begin
                return Completion(finish=found.reason, said=found.said, seconds=spent, tries=tuple(tries))
            tries.append(Try(reason=found.reason, said=found.said, seconds=time.monotonic() - start, waited=rest))
            if rest:
                self._sleep(rest)

    def _rest(self, failures: int) -> float:
        return min(self.config.longest_rest, self.config.rest * 2.0 ** min(failures, 30))

    def _settings(self, request: Request) -> dict[str, Any]:
        """The request as the protocol has it, without what this server does not know."""
        told: dict[str, Any] = {
            "messages": [asdict(one) for one in request.messages],
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
        }
        if request.stop:
            told["stop"] = list(request.stop)
        limit = "max_completion_tokens" if "max_tokens" in self._unknown else "max_tokens"
        told[limit] = request.max_tokens
        return {name: value for name, value in told.items() if name not in self._unknown}

    def _once(self, request: Request) -> "Completion | _Failure":
        """One call: an answer, good or not, or why there is none."""
        openai = self._openai
        try:
            raw = self._client.chat.completions.create(
                model=self.config.model, extra_body=self.config.fields or None, **self._settings(request)
            )
        except openai.APIStatusError as error:
            return self._status(error)
        except openai.APIConnectionError as error:  # refused, broken off, or timed out
            cause = f": {error.__cause__}" if error.__cause__ else ""
            return _Failure(reason="outage", said=self._clean(f"{error}{cause}"), again=True)
        except (openai.OpenAIError, ValueError, TypeError, RecursionError) as error:
            # Not what the protocol says: HTML from a proxy, broken JSON, an event stream, keys that are no names.
            return Completion(finish="junk", said=self._clean(f"{type(error).__name__}: {error}"))
        return self._read(raw)

    def _status(self, error: Any) -> "_Failure":
        """What an HTTP status means for the next try."""
        said = self._clean(f"HTTP {error.status_code}: {error.message}")
        if error.status_code == 429 and error.code != "insufficient_quota":
            return _Failure(reason="rate-limit", said=said, again=True, wanted=_retry_after(error.response.headers))
        if error.status_code in (408, 409, 425) or error.status_code >= 500:
            return _Failure(reason="outage", said=said, again=True, wanted=_retry_after(error.response.headers))
        if error.code == "context_length_exceeded" or error.status_code == 413 or TOO_LONG.search(said):
            return _Failure(reason="too-long", said=said)
        setting = error.param if error.param in (*OPTIONAL, "max_tokens") else ""
        return _Failure(reason="refused", said=said, setting=setting)

    def _read(self, raw: Any) -> Completion:
        """An answer of the protocol's form, or "junk": the client library checks no types."""
        try:
            told = raw.model_dump(warnings=False)
            choice = told["choices"][0] if told.get("choices") else None
            text = "" if choice is None else choice["message"].get("content")
            finish = "stop" if choice is None else choice.get("finish_reason")
            usage = told.get("usage") or {}
            read, written = (_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens"))
        except (AttributeError, KeyError, TypeError, IndexError) as error:
            return Completion(finish="junk", said=self._clean(f"no chat completion ({type(error).__name__}): {raw!r}"))
        if not isinstance(text, str | None):
            return Completion(finish="junk", said=self._clean(f"the answer is no text: {text!r}"))
        text = self._hide(text or "")
        ended: Finish = "length" if finish == "length" else "filtered" if finish == "content_filter" else "stop"
        if ended == "stop" and not text.strip():
            ended = "empty"
        price = self.config.price.of(read, written) if self.config.price else None
        return Completion(text=text, finish=ended, prompt_tokens=read, completion_tokens=written, price=price)

    def _hide(self, text: str) -> str:
        """The text without the key, and without half characters, which no file can hold."""
        whole = text.encode("utf-8", "replace").decode()
        return whole.replace(self._key, HIDDEN) if self._key else whole

    def _clean(self, text: str) -> str:
        return one_line(self._hide(text))


@dataclass(frozen=True, kw_only=True)
class _Failure:
    """Why a call brought no answer."""

    reason: Finish
    said: str
    again: bool = False
    """Whether the same call may succeed later."""
    wanted: float = 0.0
    """Seconds the server asks to wait."""
    setting: str = ""
    """The setting that the server does not know."""


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _retry_after(headers: Any) -> float:
    """Seconds of the header Retry-After, at most an hour; 0 where it is absent or a date."""
    try:
        wanted = float(headers.get("retry-after", ""))
    except ValueError:
        return 0.0
    return wanted if 0 <= wanted <= 3600 else 0.0


def _openai() -> ModuleType:
    try:
        import openai
    except ImportError as error:
        raise BefitError("a model behind a server needs the openai client: pip install 'befit[llm]'") from error
    return openai
