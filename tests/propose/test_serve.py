"""Against a real server: `transformers serve` with a tiny local model, killed in the middle of a request and started again."""

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from transformers import GenerationConfig

from befit.errors import BefitError
from befit.progress import Item
from befit.propose.attempts import Attempts, Cache, Recorded
from befit.propose.client import Server, ServerConfig
from befit.propose.config import ProposeConfig
from befit.propose.job import TABLES
from befit.propose.local import load
from befit.propose.loop import propose
from befit.propose.models import Completion, Message, Request
from befit.propose.records import Records
from chat_server import free_port
from tiny_chat import save_tiny_chat

MESSAGES = (Message(role="system", content="You write networks."), Message(role="user", content="a net"))
ASKS = [Request(messages=MESSAGES, max_tokens=16, temperature=1.0, seed=seed) for seed in range(5)]
START_SECONDS = 180


@dataclass(kw_only=True)
class Serving:
    """A server process that can die and come back."""

    model: Path
    port: int
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable,
            "-c",
            "from transformers.cli.transformers import main; main()",
            "serve",
            str(self.model),
        ]
        command += ["--device", "cpu", "--host", "127.0.0.1", "--port", str(self.port)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        end = time.monotonic() + START_SECONDS
        while not self._healthy():
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text(errors="replace")[-3000:]
            time.sleep(0.1)

    def stop(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(number)
        if self.process is not None and number == signal.SIGKILL:
            self.process.wait()

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False


@contextmanager
def recorded(server: Server, folder: Path, run: str) -> Iterator[Recorded]:
    try:
        yield Recorded(server, Attempts(folder / run / "attempts.sqlite"), cache=Cache(folder / "cache"))
    finally:
        server.close()


def run_with_an_outage(serving: Serving, out: Path) -> None:
    """`befit propose` at this server, which goes away after two proposals: the run stops, says so, and is resumed."""
    told = ProposeConfig(
        llm=f"http://127.0.0.1:{serving.port}/v1",
        model=str(serving.model),
        out=out,
        proposals=4,
        retries=0,
        max_tokens=24,
        patience=0.0,
    )

    def kill_after_two(items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
        del label, total
        for place, item in enumerate(items):
            if place == 2:
                serving.stop()
            yield item

    with pytest.raises(BefitError, match=r"did not answer 3 times in a row.*befit resume"):
        propose(replace(told, proposals=6), progress=kill_after_two)
    with pytest.raises(BefitError, match=r"does not answer .*start the server"):
        propose(told)
    before = Records(out / TABLES).proposals()
    assert [(row.number, row.calls, row.done) for row in before] == [(0, 1, True), (1, 1, True)]
    serving.start()
    summary = propose(told)
    after = Records(out / TABLES).proposals()
    assert after[:2] == before and [row.number for row in after] == [0, 1, 2, 3] and not summary["best"]
    # Random weights write no networks; but each answer came, was read and has its reason.
    assert summary["arms"][0]["funnel"]["returned"] == 4 and all(row.reason and row.prompt_tokens for row in after)
    answered = [one for one in Attempts(out / TABLES).rows() if one.completion is not None and one.completion.answered]
    assert len(answered) == len({one.key for one in answered}) == 4


def test_a_run_goes_on_after_an_outage_with_nothing_lost_or_repeated(tmp_path: Path) -> None:
    folder = save_tiny_chat(tmp_path / "tiny")
    # The server draws only if the model says so, and from the likeliest 50 tokens unless it says otherwise.
    GenerationConfig(do_sample=True, top_k=0, eos_token_id=256, pad_token_id=256).save_pretrained(folder)
    serving = Serving(model=folder, port=free_port(), log=tmp_path / "serve.log")
    config = ServerConfig(url=f"http://127.0.0.1:{serving.port}/v1", model=str(folder), timeout=120.0, rest=0.01)
    rests: list[float] = []

    def rest(seconds: float) -> None:
        rests.append(seconds)
        serving.start()

    def kill_when_a_row_is_open(attempts: Attempts) -> None:
        while all(one.completion for one in attempts.rows()):
            time.sleep(0.02)
        time.sleep(0.2)
        serving.stop()

    try:
        serving.start()
        with recorded(Server(config, sleep=rest), tmp_path, "run") as model:
            before = [model.complete(one) for one in ASKS[:2]]
            serving.stop(signal.SIGSTOP)  # so that the request is under way, for certain, when the server dies
            killer = threading.Thread(target=kill_when_a_row_is_open, args=(model.attempts,))
            killer.start()
            after = [model.complete(one) for one in ASKS[2:]]
            killer.join()
            rows = model.attempts.rows()
        run_with_an_outage(serving, tmp_path / "propose")
    finally:
        serving.stop()

    found: list[Completion] = [*before, *after]
    alone = load(str(folder), device="cpu")
    expected = [alone.complete(one) for one in ASKS]
    assert [one.text for one in found] == [one.text for one in expected]
    assert [one.prompt_tokens for one in found] == [one.prompt_tokens for one in expected]
    assert {one.finish for one in found} == {"length"} and len({one.text for one in found}) == len(ASKS)
    assert [[one.reason for one in each.tries] for each in found] == [[], [], ["outage"], [], []]
    assert len(rests) == 1
    assert [(one.request, one.completion) for one in rows] == list(zip(ASKS, found, strict=True))

    # The server is down: the same run, and another one with the same cache, need it no more.
    for run in ("run", "again"):
        with recorded(Server(replace(config, patience=0.0)), tmp_path, run) as model:
            assert [model.complete(one) for one in ASKS] == found
            assert model.attempts.spent().calls == (len(ASKS) if run == "run" else 0)
            assert model.complete(replace(ASKS[0], seed=99)).finish == "outage"
