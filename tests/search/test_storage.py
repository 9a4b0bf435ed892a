"""Where studies lie, and what is said when they cannot."""

import sqlite3
from pathlib import Path

import optuna
import pytest

from befit.errors import BefitError
from befit.search.storage import open_storage, quiet_optuna


def test_a_file_is_sqlite_that_others_can_read_meanwhile(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "new" / "study.sqlite"))
    optuna.create_study(storage=storage, study_name="one")
    connection = sqlite3.connect(tmp_path / "new" / "study.sqlite")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    assert optuna.get_all_study_names(f"sqlite:///{tmp_path / 'new' / 'study.sqlite'}") == ["one"]


def test_a_journal_is_known_by_its_ending(tmp_path: Path) -> None:
    optuna.create_study(storage=open_storage(str(tmp_path / "a" / "s.journal")), study_name="one")
    assert optuna.get_all_study_names(open_storage(str(tmp_path / "a" / "s.journal"))) == ["one"]
    assert (tmp_path / "a" / "s.journal").read_text().startswith("{")


def test_what_cannot_be_opened_is_said_without_the_password() -> None:
    with pytest.raises(BefitError, match=r"user@localhost.*cannot be used") as error:
        open_storage("postgresql://user:secret@localhost:1/none?connect_timeout=1")
    assert "secret" not in str(error.value)
    with pytest.raises(BefitError, match=r"its driver is missing"):
        open_storage("oracle://user@localhost/none")


def test_optuna_is_quiet_only_within() -> None:
    before = optuna.logging.get_verbosity()
    with quiet_optuna():
        assert optuna.logging.get_verbosity() == optuna.logging.WARNING
    assert optuna.logging.get_verbosity() == before
