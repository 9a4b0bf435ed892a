import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from befit.errors import DiskFull, RunConflict
from befit.propose.attempts import Attempts, Cache, Early, Recorded
from befit.propose.client import Server, ServerConfig
from befit.propose.database import transaction
from befit.propose.models import Completion, Message, Request, Scripted, Try, script
from chat_server import answer, error, serving

ASK = Request(messages=(Message(role="user", content="a net"),), stop=("END",))


def asks(count: int) -> list[Request]:
    return [replace(ASK, seed=seed) for seed in range(count)]


def counting() -> Scripted:
    return Scripted(write=lambda request, _rng: f"answer {request.seed}")


def test_a_row_is_there_before_the_call_and_complete_after_it(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path / "run" / "attempts.sqlite")
    seen = []

    def write(request: Request, _rng: object) -> Completion:
        seen.extend(attempts.rows())
        return Completion(text="x", prompt_tokens=3, tries=(Try(reason="outage", said="gone", seconds=1.0),))

    Recorded(Scripted(write=write), attempts).complete(ASK)
    (before,), (after,) = seen, attempts.rows()
    assert (before.request, before.completion, before.ended) == (ASK, None, None)
    assert after.completion is not None and after.completion.text == "x" and after.completion.tries[0].said == "gone"
    assert after.ended is not None and before.began == after.began <= after.ended
    assert (before.number, before.key, before.model) == (after.number, ASK.key("script"), "script")


def test_a_second_run_makes_no_call(tmp_path: Path) -> None:
    model, cache = counting(), Cache(tmp_path / "cache")
    first = Recorded(model, Attempts(tmp_path / "a.sqlite"), cache=cache)
    texts = [first.complete(one).text for one in asks(3)]
    assert [first.complete(one).text for one in asks(3)] == texts == ["answer 0", "answer 1", "answer 2"]
    assert len(model.asked) == 3 == len(first.attempts.rows())

    again = Recorded(script("none"), Attempts(tmp_path / "a.sqlite"))
    assert [again.complete(one).text for one in asks(3)] == texts
    other = Recorded(Scripted(write=_nobody), Attempts(tmp_path / "b.sqlite"), cache=cache)
    assert [other.complete(one).text for one in asks(3)] == texts
    assert [one.cached for one in other.attempts.rows()] == [True] * 3
    spent = other.attempts.spent()
    assert (spent.calls, spent.cached, spent.completion_tokens, spent.seconds) == (0, 3, 0, 0.0)


def _nobody(request: Request, rng: object) -> str:
    raise AssertionError("asked")


def test_another_model_is_asked_anew(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path / "a.sqlite")
    first, second = counting(), Scripted(name="other", write=lambda _request, _rng: "mine")
    assert Recorded(first, attempts).complete(ASK).text != Recorded(second, attempts).complete(ASK).text
    assert [one.model for one in attempts.rows()] == ["script", "other"]


def test_what_is_no_answer_is_recorded_and_asked_again(tmp_path: Path) -> None:
    model = script(Completion(finish="outage", said="gone"), Completion(finish="junk"), "here", "never")
    recorded = Recorded(model, Attempts(tmp_path / "a.sqlite"), cache=Cache(tmp_path / "cache"))
    assert [recorded.complete(ASK).finish for _ in range(4)] == ["outage", "junk", "stop", "stop"]
    found = [one.completion.finish for one in recorded.attempts.rows() if one.completion]
    assert found == ["outage", "junk", "stop"] and len(model.asked) == 3


def test_a_cut_off_or_empty_answer_is_an_answer(tmp_path: Path) -> None:
    model = script(Completion(text="cla", finish="length"), " ")
    recorded = Recorded(model, Attempts(tmp_path / "a.sqlite"))
    for one in (*asks(2), *asks(2)):
        recorded.complete(one)
    assert len(model.asked) == 2


def test_what_was_spent_is_the_sum_of_the_calls(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path / "a.sqlite")
    priced = Completion(text="x", prompt_tokens=10, completion_tokens=4, seconds=2.0, price=0.5)
    model = script(priced, replace(priced, price=None), Completion(finish="outage", seconds=1.0))
    for one in asks(3):
        Recorded(model, attempts).complete(one)
    attempts.begin(replace(ASK, seed=9), "script")
    spent = attempts.spent()
    assert (spent.calls, spent.cached, spent.open, spent.unpriced) == (4, 0, 1, 1)
    assert (spent.prompt_tokens, spent.completion_tokens, spent.seconds, spent.price) == (20, 8, 5.0, 0.5)


def test_a_damaged_cache_file_is_no_answer_and_another_file_is_no_table(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for text in ("", "{", "[]", "3", '{"text": 1}', '{"tries": [], "unknown": 1}', '{"tries": [], "finish": "well"}'):
        (tmp_path / "k.json").write_text(text)
        assert cache.get("k") is None
    cache.put("k", Completion(text="x"))
    assert cache.get("k") == Completion(text="x")
    (tmp_path / "a.sqlite").write_text("no database at all, only some text that is long enough")
    with pytest.raises(RunConflict, match="no table of attempts"):
        Attempts(tmp_path / "a.sqlite")


def test_a_full_disk_is_said_to_be_one_and_loses_nothing(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path / "a.sqlite")
    number = attempts.begin(ASK, "m")

    def grow() -> None:
        with transaction(attempts.path, "attempts") as connection:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {pages}")
            connection.execute("UPDATE attempts SET completion = ? WHERE number = ?", ("x" * 100_000, number))

    with pytest.raises(DiskFull, match="no room"):
        grow()
    (row,) = attempts.rows()
    assert row.number == number and row.completion is None


def test_a_log_that_finds_no_room_is_a_full_disk_too(tmp_path: Path) -> None:
    failed = sqlite3.OperationalError("disk I/O error")
    failed.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
    with pytest.raises(DiskFull, match="disk I/O error"), transaction(tmp_path / "a", "rows"):
        raise failed
    failed.sqlite_errorcode = sqlite3.SQLITE_BUSY
    with pytest.raises(sqlite3.OperationalError), transaction(tmp_path / "a", "rows"):
        raise failed


KILLED = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from befit.propose.attempts import Attempts, Recorded
from befit.propose.models import Message, Request, Scripted

def write(request, rng):
    if request.seed == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return f"answer {request.seed}"

ask = Request(messages=(Message(role="user", content="a net"),), stop=("END",))
model = Recorded(Scripted(write=write), Attempts(Path(sys.argv[1])))
for seed in range(4):
    model.complete(replace(ask, seed=seed))
"""


def test_a_kill_between_the_two_leaves_a_row_that_says_so_and_loses_and_repeats_nothing(tmp_path: Path) -> None:
    path = tmp_path / "attempts.sqlite"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    attempts = Attempts(path)
    assert [one.completion and one.completion.text for one in attempts.rows()] == ["answer 0", "answer 1", None]
    assert attempts.spent().open == 1

    model = counting()
    recorded = Recorded(model, attempts)
    assert [recorded.complete(one).text for one in asks(4)] == [f"answer {seed}" for seed in range(4)]
    assert [one.seed for one in model.asked] == [2, 3]
    assert [one.request.seed for one in attempts.rows()] == [0, 1, 2, 2, 3]
    assert [one.request.seed for one in attempts.rows() if one.completion is None] == [2]


def test_threads_share_the_table_and_one_call(tmp_path: Path) -> None:
    def write(request: Request, _rng: object) -> str:
        time.sleep(0.01)
        return f"answer {request.seed}"

    model = Scripted(write=write)
    recorded = Recorded(model, Attempts(tmp_path / "a.sqlite"))
    found: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: found.append([recorded.complete(one).text for one in asks(6)]))
        for _ in range(4)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert found == [[f"answer {seed}" for seed in range(6)]] * 4
    assert sorted(one.seed for one in model.asked) == list(range(6)) == [n - 1 for n in range(1, 7)]
    assert all(one.completion for one in recorded.attempts.rows())


def test_no_file_holds_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "sk-fake-0123456789abcdef"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    replies = [error(500, f"cannot use {key}"), error(401, f"not {key}"), answer(f"you sent {key}")]
    with serving(lambda _body, number: replies[number]) as seen:
        server = Server(ServerConfig(url=seen.url, model="m"), sleep=lambda _seconds: None)
        recorded = Recorded(server, Attempts(tmp_path / "a.sqlite"), cache=Cache(tmp_path / "cache"))
        assert [recorded.complete(ASK).finish for _ in range(2)] == ["refused", "stop"]
        server.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 2 and os.environ["OPENAI_API_KEY"] == key
    assert not [path for path in files if key.encode() in path.read_bytes()]
    assert any(b"[key]" in path.read_bytes() for path in files)


def test_an_early_call_that_breaks_down_is_made_again_where_it_is_seen() -> None:
    def write(_request: Request, _rng: random.Random) -> str:
        if len(model.asked) == 1:
            raise RuntimeError("the client has been closed")
        return "here"

    model = Scripted(write=write)
    early = Early(model, ASK)
    assert early.answer().text == "here" and len(model.asked) == 2
