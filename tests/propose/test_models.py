import json
from dataclasses import asdict, replace

import pytest

from befit.errors import BadData
from befit.propose.models import Completion, Message, Model, Price, Request, Scripted, Try, one_line, script

ASK = Request(messages=(Message(role="user", content="a net"),))


@pytest.mark.parametrize(
    "change",
    [
        {"messages": (Message(role="user", content="a  net"),)},
        {"messages": (Message(role="system", content="a net"),)},
        {"temperature": 0.5},
        {"top_p": 0.9},
        {"max_tokens": 10},
        {"seed": 1},
        {"stop": ("```",)},
    ],
)
def test_whatever_an_answer_depends_on_is_in_the_key(change: dict) -> None:
    assert ASK.key("m") == replace(ASK).key("m")
    assert ASK.key("m") != replace(ASK, **change).key("m")
    assert ASK.key("m") != ASK.key("n")


def test_values_survive_json() -> None:
    request = replace(ASK, stop=("a", "b"), seed=3)
    assert Request.of(json.loads(json.dumps(asdict(request)))) == request
    failed = Try(reason="outage", said="refused", seconds=0.1, waited=2.0)
    made = Completion(text="x", finish="length", prompt_tokens=3, price=0.25, tries=(failed, failed))
    assert Completion.of(json.loads(json.dumps(asdict(made)))) == made


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": ()},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"max_tokens": 0},
        {"seed": -1},
    ],
)
def test_impossible_requests_are_refused(wrong: dict) -> None:
    with pytest.raises(BadData, match=r"request: .*(must|at least)"):
        replace(ASK, **wrong)
    with pytest.raises(BadData, match="role"):
        Message(role="tool", content="")  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadData, match="finish"):
        Completion(finish="done")  # pyright: ignore[reportArgumentType]


def test_prices_are_per_million_tokens_and_unknown_without_tokens() -> None:
    price = Price(read=0.5, written=2.0)
    assert price.of(1_000_000, 500_000) == pytest.approx(1.5)
    assert price.of(None, 5) is None and price.of(5, None) is None
    with pytest.raises(BadData, match="per million"):
        Price(read=-1.0, written=0.0)


def test_a_script_answers_in_turn_and_a_drawn_answer_depends_on_the_seed_alone() -> None:
    model: Model = script("one", Completion(finish="outage"), " ")
    assert [model.complete(ASK).finish for _ in range(4)] == ["stop", "outage", "empty", "stop"]
    drawn = Scripted(write=lambda _request, rng: str(rng.random()))
    assert drawn.complete(ASK).text == drawn.complete(ASK).text != drawn.complete(replace(ASK, seed=1)).text
    assert len(drawn.asked) == 3
    assert Completion(finish="empty").answered and not Completion(finish="junk").answered


def test_one_line_is_one_line() -> None:
    assert one_line(" a\n\n b\tc ") == "a b c"
    assert one_line("x" * 500, 10) == "x" * 9 + "…"
