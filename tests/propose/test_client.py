import json
import logging
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from befit.errors import BadData
from befit.propose.client import Server, ServerConfig
from befit.propose.models import Completion, Message, Price, Request
from chat_server import Reply, Seen, answer, error, free_port, serving

ASK = Request(messages=(Message(role="system", content="s"), Message(role="user", content="u")), seed=4, stop=("END",))
KEY = "sk-fake-0123456789abcdef"


@contextmanager
def asked(replies: list[Reply], rests: list[float] | None = None, **settings: Any) -> Iterator[tuple[Server, Seen]]:
    """A client of a server that gives these replies in turn and then the last one again."""
    with serving(lambda _body, number: replies[min(number, len(replies) - 1)]) as seen:
        config = ServerConfig(url=seen.url, model="m", **settings)
        server = Server(config, sleep=(rests if rests is not None else []).append)
        try:
            yield server, seen
        finally:
            server.close()


def once(*replies: Reply, **settings: Any) -> Completion:
    with asked(list(replies), **settings) as (server, _):
        return server.complete(ASK)


def test_the_request_goes_over_as_it_is_and_the_answer_comes_back() -> None:
    with asked([answer("class Net: ...")], price=Price(read=1.0, written=10.0)) as (server, seen):
        found = server.complete(ASK)
        assert server.name == f"m at {seen.url}"
    assert seen.bodies == [
        {
            "model": "m",
            "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
            "temperature": 0.8,
            "top_p": 1.0,
            "max_tokens": 4096,
            "seed": 4,
            "stop": ["END"],
        }
    ]
    assert (found.text, found.finish, found.prompt_tokens, found.completion_tokens) == ("class Net: ...", "stop", 7, 5)
    assert found.price == pytest.approx((7 * 1.0 + 5 * 10.0) / 1e6)
    assert found.seconds > 0 and not found.tries


@pytest.mark.parametrize(
    ("reply", "finish"),
    [
        (answer("half a", finish="length"), "length"),
        (answer("", finish="length"), "length"),
        (answer(""), "empty"),
        (answer(" \n"), "empty"),
        (answer(None, finish="tool_calls"), "empty"),
        (answer("no", finish="content_filter"), "filtered"),
        (answer(["a", "list"]), "junk"),
        (answer({"a": "b"}), "junk"),
        (Reply(body=b"<html>welcome</html>", content_type="text/html"), "junk"),
        (Reply(body=b"{not json"), "junk"),
        (Reply(body=b""), "junk"),
        (Reply(body=b"null"), "junk"),
        (Reply(body=b"[1, 2]"), "junk"),
        (Reply(body=b"3"), "junk"),
        (Reply(body=b"[" * 100_000), "junk"),
        (Reply(body=b'{"choices": [7]}'), "junk"),
        (Reply(body=b'{"choices": [{}]}'), "junk"),
        (Reply(body=b'{"choices": []}'), "empty"),
        (Reply(body=b'{"choices": null}'), "empty"),
        (Reply(body=b"\xff\xfe\x00", content_type="application/json; charset=utf-8"), "junk"),
        (error(400, "This model's maximum context length is 4096 tokens", code="context_length_exceeded"), "too-long"),
        (error(400, "the request exceeds the available context size"), "too-long"),
        (error(401, "no such key"), "refused"),
        (error(404, "no such model"), "refused"),
        (error(429, "you have not paid", code="insufficient_quota"), "refused"),
    ],
)
def test_every_answer_has_a_named_finish_and_costs_one_call(reply: Reply, finish: str) -> None:
    with asked([reply]) as (server, seen):
        found = server.complete(ASK)
    assert found.finish == finish
    assert len(seen.bodies) == 1
    assert found.answered or ("\n" not in found.said and found.said)


def test_a_server_may_be_told_more_and_is_another_model_then() -> None:
    with asked([answer("x")], extra='{"structured_outputs": {"grammar": "g"}, "top_p": 0.5}') as (server, seen):
        server.complete(ASK)
        assert "structured_outputs" in server.name
    assert seen.bodies[0]["structured_outputs"] == {"grammar": "g"} and seen.bodies[0]["top_p"] == 0.5


def test_tokens_that_are_no_counts_are_unknown() -> None:
    body = json.loads(answer("x").body)
    for usage in (None, {"prompt_tokens": "many", "completion_tokens": -1}):
        found = once(Reply(body=json.dumps({**body, "usage": usage}).encode()), price=Price(read=1.0, written=1.0))
        assert (found.prompt_tokens, found.completion_tokens, found.price) == (None, None, None)


def test_half_characters_do_not_reach_the_record() -> None:
    found = once(Reply(body=answer("x").body.replace(b'"x"', b'"a\\ud800b"')))
    assert found.text.encode() == b"a?b"


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (error(429, "slow down"), "rate-limit"),
        (error(500, "oh"), "outage"),
        (error(503, "loading the model"), "outage"),
        (Reply(status=502, body=b"<html>bad gateway</html>", content_type="text/html"), "outage"),
        (Reply(body=b'{"cho', broken=True), "outage"),
        (Reply(body=answer("late").body, delay=0.6), "outage"),
    ],
)
def test_a_call_that_may_succeed_later_is_made_again_and_the_failures_stay_on_record(
    failure: Reply, reason: str
) -> None:
    rests: list[float] = []
    with asked([failure, failure, answer("at last")], rests, timeout=0.3) as (server, seen):
        found = server.complete(ASK)
    assert (found.text, found.finish) == ("at last", "stop")
    assert [one.reason for one in found.tries] == [reason, reason]
    assert [one.waited for one in found.tries] == rests
    assert len(seen.bodies) == 3
    assert 0.5 <= rests[0] <= 1.0 <= rests[1] <= 2.0


def test_patience_ends_and_the_outcome_is_named() -> None:
    for reply, reason in ((error(429, "slow down"), "rate-limit"), (error(500, "oh"), "outage")):
        found = once(reply, patience=0.0)
        assert (found.finish, len(found.tries), found.tries[0].waited) == (reason, 1, 0.0)
        assert not found.answered
    rests: list[float] = []
    with asked([error(500, "oh")], rests, patience=30.0, longest_rest=8.0, rest=10.0) as (server, _):
        server._sleep = lambda seconds: rests.append(seconds) if len(rests) < 5 else _end(server)
        found = server.complete(ASK)
    assert found.finish == "outage" and len(found.tries) == 7
    assert all(4.0 <= rest <= 8.0 for rest in rests)


def _end(server: Server) -> None:
    server.config = replace(server.config, patience=0.0)


def test_a_server_that_asks_for_rest_gets_it() -> None:
    rests: list[float] = []
    with asked([error(429, "slow down", headers={"retry-after": "17"}), answer("x")], rests) as (server, _):
        assert server.complete(ASK).finish == "stop"
    assert rests == [17.0]
    rests.clear()
    with asked([error(429, "slow down", headers={"retry-after": "tomorrow"}), answer("x")], rests) as (server, _):
        assert server.complete(ASK).finish == "stop"
    assert rests[0] <= 1.0


def test_nobody_there_is_an_outage() -> None:
    server = Server(ServerConfig(url=f"http://127.0.0.1:{free_port()}/v1", model="m", patience=0.0))
    found = server.complete(ASK)
    server.close()
    assert found.finish == "outage" and "Connection" in found.said


def test_a_setting_that_the_server_does_not_know_is_left_out_from_then_on() -> None:
    def reply(body: dict[str, Any], _number: int) -> Reply:
        for name in ("max_tokens", "temperature", "seed"):
            if name in body:
                return error(400, f"Unsupported parameter: '{name}'", param=name, code="unsupported_parameter")
        return answer("x")

    rests: list[float] = []
    with serving(reply) as seen:
        server = Server(ServerConfig(url=seen.url, model="m"), sleep=rests.append)
        first, second = server.complete(ASK), server.complete(ASK)
        server.close()
    assert first.finish == second.finish == "stop" and not rests
    assert [one.reason for one in first.tries] == ["refused"] * 3 and not second.tries
    assert set(seen.bodies[-1]) == {"model", "messages", "max_completion_tokens", "top_p", "stop"}
    assert len(seen.bodies) == 5


def test_a_server_that_refuses_a_setting_for_ever_is_asked_twice() -> None:
    with asked([error(400, "bad temperature", param="temperature")]) as (server, seen):
        assert server.complete(ASK).finish == "refused"
    assert len(seen.bodies) == 2


ECHOES: dict[str, Callable[[str], Reply]] = {
    "error": lambda key: error(401, f"Incorrect API key provided: {key}"),
    "answer": lambda key: answer(f"your header was Bearer {key}"),
    "junk": lambda key: Reply(body=f"<html>{key}</html>".encode(), content_type="text/html"),
    "outage": lambda key: error(500, f"cannot use {key}"),
}


@pytest.mark.parametrize("echo", ECHOES)
def test_the_key_is_sent_and_nowhere_to_be_seen(
    echo: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FAKE_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with asked([ECHOES[echo](KEY)], key_variable="FAKE_KEY", patience=0.0) as (server, seen):
        found = server.complete(ASK)
        shown = f"{server!r} {server.name} {server.config!r} {found!r}"
    assert seen.headers[0]["authorization"] == f"Bearer {KEY}"
    assert caplog.records and KEY not in caplog.text
    assert KEY not in shown and "[key]" in repr(found)


def test_no_key_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert once(answer("none of it")).text == "none of it"


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "localhost:8000"},
        {"url": "http:///v1"},
        {"url": f"http://user:{KEY}@host/v1"},
        {"url": f"http://host/v1?key={KEY}"},
        {"timeout": 0.0},
        {"rest": 0.0},
        {"patience": -1.0},
        {"extra": "[1]"},
        {"extra": "{"},
    ],
)
def test_a_configuration_that_cannot_be_is_refused_without_repeating_a_secret(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadData, match="server: ") as caught:
        ServerConfig(**{"url": "http://localhost:8000/v1", "model": "m", **wrong})
    assert KEY not in str(caught.value)


def test_without_the_client_library_the_message_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['openai'] = None\n"
        "from befit.propose.client import Server, ServerConfig\n"
        "Server(ServerConfig(url='http://localhost/v1', model='m'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "pip install 'befit[llm]'" in done.stderr


def test_answers_with_random_damage_raise_nothing() -> None:
    rng = random.Random(0)
    whole = answer("class Net: pass").body
    bodies = []
    for _ in range(150):
        body = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            body[rng.randrange(len(body))] = rng.choice(b'{}[]",:0aN\\\xff')
        bodies.append(bytes(body[: rng.choice([len(body), rng.randrange(len(body))])]))
    with asked([Reply(body=body) for body in bodies]) as (server, _):
        found = [server.complete(ASK).finish for _ in bodies]
    assert {"junk", "stop"} <= set(found) <= {"junk", "stop", "empty", "length", "filtered"}
