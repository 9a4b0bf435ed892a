"""The proposals of a run, one row each, on disk from before the first request is made until nothing is left to be done.

A row is written when its proposal is begun and again after each step. A run that is killed leaves one row that is not `done`,
or a second one that was asked for early; the run that goes on makes these proposals anew, with the answers that
`befit.propose.attempts` has already, and ends with the rows of a run that was never killed.
"""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from befit.errors import RunConflict
from befit.propose.database import transaction
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
        with transaction(self.path, "proposals") as connection:
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
        with transaction(self.path, "proposals") as connection:
            connection.execute(WRITE, told)

    def forget(self, rows: Sequence[Proposal]) -> None:
        """Drop these rows, so that their proposals are made anew."""
        with transaction(self.path, "proposals") as connection:
            connection.executemany(f"DELETE FROM proposals WHERE {IS_KEY}", [row.key for row in rows])

    def proposals(
        self, *, arm: str | None = None, dataset: str | None = None, seed: int | None = None
    ) -> list[Proposal]:
        """Rows by arm, dataset, seed and number; only those of one arm, dataset or seed if it is given."""
        told = {"arm": arm, "dataset": dataset, "seed": seed}
        wanted = {name: value for name, value in told.items() if value is not None}
        where = f"WHERE {' AND '.join(f'{name} = ?' for name in wanted)}" if wanted else ""
        query = f"SELECT {', '.join(COLUMNS)} FROM proposals {where} ORDER BY {', '.join(KEY)}"
        with transaction(self.path, "proposals") as connection:
            return [_proposal(row) for row in connection.execute(query, tuple(wanted.values()))]


def _proposal(row: Sequence[Any]) -> Proposal:
    told = dict(zip(COLUMNS, row, strict=True))
    return Proposal(**{**told, "examples": tuple(json.loads(told["examples"])), "done": bool(told["done"])})
