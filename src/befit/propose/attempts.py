"""Every request that a run makes, on disk before it is made and completed after: what was asked, what came, what it cost.

A run that is killed in a call leaves a row that says so, and no other trace; the run that continues it finds the answers
that came and asks only for those that did not. `Recorded` puts this around any model:

    model = Recorded(model, Attempts(run / "attempts.sqlite"), cache=Cache(folder))
    model.complete(request)

The cache is shared by runs: the same request to the same model is asked once, ever. What was no answer of the model (an
outage, a refusal) is recorded but not reused.
"""

import json
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from befit.propose.database import transaction
from befit.propose.models import Completion, Model, Request
from befit.rundir import read_json, write_json

TABLE = """
CREATE TABLE IF NOT EXISTS attempts (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL,
    model TEXT NOT NULL,
    request TEXT NOT NULL,
    cached INTEGER NOT NULL,
    began REAL NOT NULL,
    ended REAL,
    completion TEXT
)
"""
INDEX = "CREATE INDEX IF NOT EXISTS attempts_key ON attempts (key)"


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One row: a request and, if it came to that, its completion."""

    number: int
    """In the order in which they were begun, from 1."""
    key: str
    """The request's key with its model."""
    model: str
    """The model's name."""
    request: Request
    """What was asked."""
    cached: bool
    """Whether the completion was taken from an earlier run, at no cost."""
    began: float
    """Seconds since 1970."""
    ended: float | None
    """Seconds since 1970; None for a call that is under way, or whose process was killed."""
    completion: Completion | None
    """What came back."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a run's calls have cost, without what came from the cache."""

    calls: int = 0
    """Requests made, those without an answer included."""
    cached: int = 0
    """Requests answered from the cache."""
    open: int = 0
    """Calls under way or killed: what they cost is not known."""
    prompt_tokens: int = 0
    """Read, as far as the servers said."""
    completion_tokens: int = 0
    """Written, as far as the servers said."""
    seconds: float = 0.0
    """In calls, rests included."""
    price: float = 0.0
    """Of the calls whose price is known."""
    unpriced: int = 0
    """Calls that brought an answer whose price is not known."""


class Attempts:
    """The table of a run's attempts, an SQLite file. Threads and processes may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with transaction(self.path, "attempts") as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(TABLE)
            connection.execute(INDEX)

    def begin(self, request: Request, model: str) -> int:
        """Write that the request is about to be made; its number."""
        return self._insert(request, model, completion=None)

    def end(self, number: int, completion: Completion) -> None:
        """Write what came of it."""
        with transaction(self.path, "attempts") as connection:
            told = (time.time(), json.dumps(asdict(completion)), number)
            connection.execute("UPDATE attempts SET ended = ?, completion = ? WHERE number = ?", told)

    def reuse(self, request: Request, model: str, completion: Completion) -> None:
        """Write that the request was answered from the cache."""
        self._insert(request, model, completion=completion)

    def answer(self, key: str) -> Completion | None:
        """The answer that the request of this key has in this run; None if it has none yet."""
        query = "SELECT completion FROM attempts WHERE key = ? AND completion IS NOT NULL ORDER BY number DESC"
        with transaction(self.path, "attempts") as connection:
            made = [Completion.of(json.loads(row[0])) for row in connection.execute(query, (key,))]
        return next((one for one in made if one.answered), None)

    def rows(self) -> list[Attempt]:
        """All attempts, in order."""
        query = "SELECT number, key, model, request, cached, began, ended, completion FROM attempts ORDER BY number"
        with transaction(self.path, "attempts") as connection:
            return [_attempt(row) for row in connection.execute(query)]

    def spent(self) -> Spent:
        """The sum of it."""
        rows = self.rows()
        made = [one.completion for one in rows if one.completion is not None and not one.cached]
        return Spent(
            calls=sum(not one.cached for one in rows),
            cached=sum(one.cached for one in rows),
            open=sum(one.completion is None for one in rows),
            prompt_tokens=sum(one.prompt_tokens or 0 for one in made),
            completion_tokens=sum(one.completion_tokens or 0 for one in made),
            seconds=sum(one.seconds for one in made),
            price=sum(one.price or 0.0 for one in made),
            unpriced=sum(one.answered and one.price is None for one in made),
        )

    def _insert(self, request: Request, model: str, completion: Completion | None) -> int:
        now, there = time.time(), completion is not None
        said = json.dumps(asdict(completion)) if completion is not None else None
        row = (request.key(model), model, json.dumps(asdict(request)), there, now, now if there else None, said)
        columns = "key, model, request, cached, began, ended, completion"
        with transaction(self.path, "attempts") as connection:
            made = connection.execute(f"INSERT INTO attempts ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            return made.lastrowid or 0


class Cache:
    """Answers of earlier runs: a folder with one JSON file for each request."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> Completion | None:
        """The answer kept under this key; a file that cannot be read counts as none."""
        try:
            return Completion.of(read_json(self.folder / f"{key}.json"))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def put(self, key: str, completion: Completion) -> None:
        """Keep an answer."""
        write_json(self.folder / f"{key}.json", asdict(completion))


class Recorded:
    """A model whose every call is written down before and after, and none made twice. Threads may share it."""

    def __init__(self, model: Model, attempts: Attempts, *, cache: Cache | None = None) -> None:
        self.model = model
        self.attempts = attempts
        self.cache = cache
        self._under_way = dict[str, threading.Lock]()
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The model's."""
        return self.model.name

    def complete(self, request: Request) -> Completion:
        """The answer that this run, or the cache, has; else the model's, recorded."""
        key = request.key(self.model.name)
        with self._lock:
            alone = self._under_way.setdefault(key, threading.Lock())
        with alone:  # two threads with the same request share one call
            if (known := self.attempts.answer(key)) is not None:
                return known
            if self.cache is not None and (known := self.cache.get(key)) is not None:
                self.attempts.reuse(request, self.model.name, known)
                return known
            number = self.attempts.begin(request, self.model.name)
            made = self.model.complete(request)
            self.attempts.end(number, made)
            if self.cache is not None and made.answered:
                self.cache.put(key, made)
            return made


class Early(threading.Thread):
    """An answer that is on its way while something else is done. Who ends the process does not wait for it."""

    def __init__(self, model: Model, request: Request) -> None:
        """The call is begun."""
        super().__init__(daemon=True)
        self._model, self._request = model, request
        self._made: Completion | None = None
        self.start()

    def run(self) -> None:
        """Make the call. Where a run stops, it closes its models: what a call says that is then under way concerns nobody."""
        with suppress(RuntimeError):
            self._made = self._model.complete(self._request)

    def answer(self) -> Completion:
        """Wait for it. A call that broke down is made here once more, so that its error is raised where it is seen."""
        self.join()
        return self._made if self._made is not None else self._model.complete(self._request)


def _attempt(row: Any) -> Attempt:
    number, key, model, request, cached, began, ended, completion = row
    return Attempt(
        number=number,
        key=key,
        model=model,
        request=Request.of(json.loads(request)),
        cached=bool(cached),
        began=began,
        ended=ended,
        completion=Completion.of(json.loads(completion)) if completion else None,
    )
