"""Calls are judged as JSON values, not as texts; each wrong call is wrong in one thing."""

import json
import re
from typing import Any

import pytest

from befit.errors import BadData
from befit.lm.tasks.item import items
from befit.lm.tasks.tool_call import TOOL_CALL, TOOLS


def test_the_request_alone_says_what_to_call() -> None:
    for item in items(TOOL_CALL, seed=0, count=60, tokens=len):
        call = json.loads(item.answer)
        described = dict(re.findall(r"^Tool: (\w+)\((.*)\)$", item.prompt, re.MULTILINE))
        assert len(described) == int(item.labels["tools"]) and call["name"] in described
        assert list(call["arguments"]) == re.findall(r"(\w+):", described[call["name"]])
        request = item.prompt.rsplit("Request: ", 1)[-1]
        assert all(str(value) in request for value in call["arguments"].values())
        examples = item.prompt.rsplit("Request: ", 1)[0]
        text, number = call["arguments"].values()
        assert f'"{text}"' not in examples and f": {number}}}" not in examples
        told = [json.loads(option) for option in item.options]
        assert all(one["name"] in described for one in told)
        tools, values = ({json.dumps(kind(one)) for one in told} for kind in (_tool, _values))
        assert len(tools) == len(values) == 2 and json.dumps([text, number]) in values
        (other,) = values - {json.dumps([text, number])}
        assert sum(a != b for a, b in zip(json.loads(other), (text, number), strict=True)) == 1


def _tool(call: dict[str, Any]) -> Any:
    return call["name"], list(call["arguments"])


def _values(call: dict[str, Any]) -> Any:
    return list(call["arguments"].values())


def test_json_decides() -> None:
    item = items(TOOL_CALL, seed=0, count=1, tokens=len)[0]
    call = json.loads(item.answer)
    assert TOOL_CALL.correct(item, json.dumps(dict(reversed(call.items())), indent=1))
    (text, number) = call["arguments"]
    for wrong in (
        {**call, "arguments": {**call["arguments"], number: str(call["arguments"][number])}},
        {**call, "arguments": {**call["arguments"], number: float(call["arguments"][number])}},
        {**call, "arguments": {text: call["arguments"][text]}},
        {**call, "more": 1},
    ):
        assert not TOOL_CALL.correct(item, json.dumps(wrong))
    for broken in (item.answer[:-1], f"call: {item.answer}", item.answer.replace('"', "'"), "[" * 100_000):
        assert not TOOL_CALL.correct(item, broken)


def test_tools_are_at_least_two() -> None:
    for level in (1, len(TOOLS) + 1):
        with pytest.raises(BadData, match="describes 2 to 8 tools"):
            items(TOOL_CALL, seed=0, count=1, tokens=len, levels=(level,))
