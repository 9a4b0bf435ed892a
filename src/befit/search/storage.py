"""Where a study lies: an SQLite file, any database that Optuna takes by URL, or Optuna's journal file."""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from befit.errors import BefitError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

WAIT_SECONDS = 120
"""How long a writer waits for others at an SQLite file; 5, the default, is little on a busy disk."""

ATTEMPTS = 8
"""To open a database whose tables others make at the same time."""


@contextmanager
def opened(where: str) -> "Iterator[BaseStorage]":
    """`open_storage`, its connections closed at the end."""
    from optuna.storages import RDBStorage

    storage = open_storage(where)
    try:
        yield storage
    finally:
        if isinstance(storage, RDBStorage):
            storage.remove_session()
            storage.engine.dispose()


def open_storage(where: str) -> "BaseStorage":
    """Open or create: `runs/study.sqlite` or another file, `runs/study.journal`, `postgresql://…`, any URL of Optuna's.

    Raises `BefitError` if the database cannot be reached or its driver is not installed.
    """
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from sqlalchemy.exc import SQLAlchemyError

    if where.endswith(".journal") and "://" not in where:
        Path(where).parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(where))
    url = _with_driver(where) if "://" in where else f"sqlite:///{where}"
    for attempt in range(ATTEMPTS):
        try:
            return _open(url)
        except ImportError as error:
            hint = "pip install 'befit[search]'"
            raise BefitError(f"storage {_safe(where)}: its driver is missing; {hint} ({error})") from error
        except SQLAlchemyError as error:
            # Two coordinators that start at once both make the tables; the later one finds them made half-way through.
            if "already exists" not in str(error) or attempt + 1 == ATTEMPTS:
                first = str(error).splitlines()[0]
                raise BefitError(f"storage {_safe(where)}: the database cannot be used: {first}") from error
            time.sleep(0.2 * (attempt + 1))
    raise AssertionError


def _open(url: str) -> "BaseStorage":
    from optuna.storages import RDBStorage
    from sqlalchemy import event

    if not url.startswith("sqlite"):
        # A connection that was cut while a network trained for hours is replaced, not reported.
        return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    _share_sqlite(url)
    storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": WAIT_SECONDS}})
    event.listen(storage.engine, "connect", _hasten)
    storage.engine.dispose()  # connections made before did not hear of it
    return storage


def _with_driver(url: str) -> str:
    """PostgreSQL through psycopg 3, unless the URL names a driver."""
    scheme, rest = url.split("://", maxsplit=1)
    return f"postgresql+psycopg://{rest}" if scheme in ("postgresql", "postgres") else url


def _share_sqlite(url: str) -> None:
    """Let others (a dashboard, a second coordinator) read while one writes. The setting stays in the file."""
    import sqlite3

    path = url.split(":///", maxsplit=1)[-1].split("?", maxsplit=1)[0]
    if path in ("", ":memory:"):
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=WAIT_SECONDS)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()


def _hasten(connection: Any, _: Any) -> None:
    """Flush at checkpoints, not after each of a trial's dozens of notes: safe against kills, and never inconsistent.

    https://sqlite.org/pragma.html#pragma_synchronous: with a write-ahead log only a loss of power can undo the last notes.
    """
    connection.execute("PRAGMA synchronous=NORMAL")


def _safe(url: str) -> str:
    """The address without its password."""
    head, at, tail = url.rpartition("@")
    scheme, mark, user = head.partition("://")
    return f"{scheme}{mark}{user.split(':')[0]}{at}{tail}" if at else url


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Without Optuna's own lines on stderr, and its remarks on what it calls experimental."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
