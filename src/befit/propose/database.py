"""SQLite files in which a run keeps what must survive a crash: each transaction is on the disk when it ends."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from befit.errors import DiskFull, RunConflict


@contextmanager
def transaction(path: Path, what: str) -> Iterator[sqlite3.Connection]:
    """A connection for one transaction. Threads and processes may share the file; they wait for each other.

    Raises `RunConflict` for a file that is something else than the table of `what`, `DiskFull` where there is no room.
    """
    with closing(sqlite3.connect(path, timeout=60.0)) as connection:
        try:
            connection.execute("PRAGMA synchronous=FULL")
            with connection:
                yield connection
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                # The low byte is the kind. On a full disk SQLite may fail to open its own log, which is an I/O error.
                if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
                    raise
                raise DiskFull(
                    f"no room on the disk for {path} ({error}); free some space and run the same command again"
                ) from error
            raise RunConflict(f"{path} is no table of {what} ({error}); give another --out") from error
