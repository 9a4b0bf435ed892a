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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from befit.errors import BefitError
from befit.progress import Item, Progress, silent
from befit.propose.attempts import Attempts, Cache, Recorded
from befit.propose.client import Server, ServerConfig
from befit.propose.config import ProposeConfig
from befit.propose.job import TABLES, ProposeJob
from befit.propose.local import load
from befit.propose.loop import propose, propose_all
from befit.propose.models import Completion, Message, Request
from befit.propose.proposal import Proposal
from befit.propose.records import Records
from befit.propose.sandbox.box import Sandbox
from chat_server import Reply, answer, free_port, serving
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


def at_server(llm: str, model: str, out: Path, proposals: int) -> ProposeConfig:
    return ProposeConfig(
        llm=llm, model=model, out=out, proposals=proposals, retries=0, max_tokens=24, patience=0.0, ahead=1
    )


def test_a_run_whose_server_goes_away_stops_says_so_and_is_resumed(sandbox: Sandbox, tmp_path: Path) -> None:
    out, port = tmp_path / "run", free_port()
    told = at_server(f"http://127.0.0.1:{port}/v1", "m", out, 4)

    def run(config: ProposeConfig, progress: Progress = silent) -> list[Proposal]:
        job = ProposeJob.open(config, progress)
        job.begin()
        try:
            propose_all(job, sandbox, sandbox)
        finally:
            job.lanes[0].proposer.close()
        return Records(out / TABLES).proposals()

    def reply(_body: dict[str, Any], _number: int) -> Reply:
        return answer("I write no networks.")

    with ExitStack() as server:
        server.enter_context(serving(reply, port))

        def gone_after_two(items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
            del label, total
            for place, item in enumerate(items):
                if place == 2:
                    server.close()
                yield item

        with pytest.raises(BefitError, match=r"did not answer 3 times in a row.*befit resume"):
            run(replace(told, proposals=8), gone_after_two)
    with pytest.raises(BefitError, match=r"does not answer .*start the server"):
        propose(told)
    before = [row for row in Records(out / TABLES).proposals() if row.done]
    assert [row.number for row in before] in ([0, 1], [0, 1, 2]), "the third may have been asked for early"
    with serving(reply, port):
        after = run(told)
    assert after[: len(before)] == before and [row.number for row in after if row.number < 4] == [0, 1, 2, 3]
    assert all(row.done and row.reason == "no-code" and row.calls == 1 for row in after if row.number < 4)
    answered = [one for one in Attempts(out / TABLES).rows() if one.completion is not None and one.completion.answered]
    assert len(answered) == len({one.key for one in answered}) == 4


def test_a_run_goes_on_after_an_outage_with_nothing_lost_or_repeated(tmp_path: Path) -> None:
    folder = save_tiny_chat(tmp_path / "tiny")
    # The server draws only if the model says so, and from the likeliest 50 tokens unless it says otherwise.
    GenerationConfig(do_sample=True, top_k=0, eos_token_id=256, pad_token_id=256).save_pretrained(folder)
    process = Serving(model=folder, port=free_port(), log=tmp_path / "serve.log")
    config = ServerConfig(url=f"http://127.0.0.1:{process.port}/v1", model=str(folder), timeout=120.0, rest=0.01)
    rests: list[float] = []

    def rest(seconds: float) -> None:
        rests.append(seconds)
        process.start()

    def kill_when_a_row_is_open(attempts: Attempts) -> None:
        while all(one.completion for one in attempts.rows()):
            time.sleep(0.02)
        time.sleep(0.2)
        process.stop()

    try:
        process.start()
        with recorded(Server(config, sleep=rest), tmp_path, "run") as model:
            before = [model.complete(one) for one in ASKS[:2]]
            process.stop(signal.SIGSTOP)  # so that the request is under way, for certain, when the server dies
            killer = threading.Thread(target=kill_when_a_row_is_open, args=(model.attempts,))
            killer.start()
            after = [model.complete(one) for one in ASKS[2:]]
            killer.join()
            rows = model.attempts.rows()
        told = at_server(f"http://127.0.0.1:{process.port}/v1", str(folder), tmp_path / "propose", 2)
        summary = propose(told)
    finally:
        process.stop()

    found: list[Completion] = [*before, *after]
    alone = load(str(folder), device="cpu")
    expected = [alone.complete(one) for one in ASKS]
    assert [one.text for one in found] == [one.text for one in expected]
    assert [one.prompt_tokens for one in found] == [one.prompt_tokens for one in expected]
    assert {one.finish for one in found} == {"length"} and len({one.text for one in found}) == len(ASKS)
    assert [[one.reason for one in each.tries] for each in found] == [[], [], ["outage"], [], []]
    assert len(rests) == 1
    assert [(one.request, one.completion) for one in rows] == list(zip(ASKS, found, strict=True))

    # Random weights write no networks; but each answer came, was read and has its reason.
    assert summary["arms"][0]["funnel"]["returned"] == 2 and not summary["best"]
    assert all(row["reason"] and row["prompt_tokens"] for row in summary["rows"])

    # The server is down: the same run, and another one with the same cache, need it no more.
    for run in ("run", "again"):
        with recorded(Server(replace(config, patience=0.0)), tmp_path, run) as model:
            assert [model.complete(one) for one in ASKS] == found
            assert model.attempts.spent().calls == (len(ASKS) if run == "run" else 0)
            assert model.complete(replace(ASKS[0], seed=99)).finish == "outage"
