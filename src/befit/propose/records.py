"""The proposals of a run, one row each, on disk from before the first request is made until nothing is left to be done.

A row is written when its proposal is begun and again after each step. A run that is killed leaves one row that is not `done`,
or a second one that was asked for early; the run that goes on makes these proposals anew, with the answers that
`befit.propose.attempts` has already, and ends with the rows of a run that was never killed.
"""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from befit.errors import DiskFull, RunConflict
from befit.propose.proposal import Proposal

COLUMNS = tuple(field.name for field in fields(Proposal))
KEY = ("arm", "dataset", "seed", "number")
TABLE = f"CREATE TABLE IF NOT EXISTS proposals ({', '.join(COLUMNS)}, PRIMARY KEY ({', '.join(KEY)})) WITHOUT ROWID"
WRITE = f"INSERT OR REPLACE INTO proposals ({', '.join(COLUMNS)}) VALUES ({', '.join('?' for _ in COLUMNS)})"
IS_KEY = " AND ".join(f"{name} = ?" for name in KEY)


class Records:
    """The table of a run's proposals, an SQLite file that may hold other tables. Processes may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._connected() as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(TABLE)
            found = tuple(row[1] for row in connection.execute("PRAGMA table_info(proposals)"))
        if found != COLUMNS:
            odd = sorted({*found} ^ {*COLUMNS})
            raise RunConflict(
                f"{path} was written by another version of befit (columns that differ: {', '.join(odd)}); give another --out"
            )

    def write(self, row: Proposal) -> None:
        """Keep this state of a proposal instead of the one before."""
        told = [json.dumps(row.examples) if name == "examples" else row.__dict__[name] for name in COLUMNS]
        with self._connected() as connection:
            connection.execute(WRITE, told)

    def forget(self, rows: Sequence[Proposal]) -> None:
        """Drop these rows, so that their proposals are made anew."""
        with self._connected() as connection:
            connection.executemany(f"DELETE FROM proposals WHERE {IS_KEY}", [row.key for row in rows])

    def find(self, key: tuple[str, str, int, int]) -> Proposal | None:
        """The proposal of this arm, dataset, seed and number; None if it was never begun."""
        found = self._rows(f"WHERE {IS_KEY}", key)
        return found[0] if found else None

    def proposals(
        self, *, arm: str | None = None, dataset: str | None = None, seed: int | None = None
    ) -> list[Proposal]:
        """Rows by arm, dataset, seed and number; only those of one arm, dataset or seed if it is given."""
        told = {"arm": arm, "dataset": dataset, "seed": seed}
        wanted = {name: value for name, value in told.items() if value is not None}
        where = f"WHERE {' AND '.join(f'{name} = ?' for name in wanted)}" if wanted else ""
        return self._rows(where, tuple(wanted.values()))

    def _rows(self, where: str, values: Sequence[str | int]) -> list[Proposal]:
        query = f"SELECT {', '.join(COLUMNS)} FROM proposals {where} ORDER BY {', '.join(KEY)}"
        with self._connected() as connection:
            return [_proposal(row) for row in connection.execute(query, values)]

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """A connection for one transaction, which is on the disk when the block ends.

        Raises `RunConflict` for a file that is something else, `DiskFull` where there is no room.
        """
        with closing(sqlite3.connect(self.path, timeout=60.0)) as connection:
            try:
                connection.execute("PRAGMA synchronous=FULL")
                with connection:
                    yield connection
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                        raise
                    raise DiskFull(
                        f"no room on the disk for {self.path}; free some space and run the same command again"
                    ) from error
                raise RunConflict(f"{self.path} is no table of proposals ({error}); give another --out") from error


def _proposal(row: Sequence[Any]) -> Proposal:
    told = dict(zip(COLUMNS, row, strict=True))
    return Proposal(**{**told, "examples": tuple(json.loads(told["examples"])), "done": bool(told["done"])})
