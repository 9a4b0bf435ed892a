"""Tool call: a request in words is to be written as the JSON call of one of the tools that are described.

Two worked examples come first. A written call is right if it parses as JSON and is the expected object: the order of keys and
spaces do not matter, types do. To choose among are two tools times two values, the asked one and another: whoever prefers a tool,
a value or a shorter call is right by chance only.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from befit.errors import BadData
from befit.lm.tasks.item import Item, Task


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A tool with one text and one whole number as arguments."""

    name: str
    text: str
    """Name of the text argument."""
    number: str
    """Name of the number argument."""
    request: str
    """A request with both values."""
    values: tuple[str, ...]
    """Texts it may be asked with."""


_CITIES = ("Oslo", "Lima", "Cairo", "Paris", "Tokyo", "Dublin", "Quito", "Prague", "Lisbon", "Nairobi")
_NAMES = ("Anna", "Boris", "Clara", "David", "Emma", "Farid", "Grace", "Hugo", "Ines", "Jonas")
_GOODS = ("apples", "bread", "rice", "paper", "candles", "tea", "soap", "nails", "honey", "salt")
_ROOMS = ("kitchen", "bedroom", "office", "garage", "hall", "cellar", "attic", "studio", "library", "bathroom")
TOOLS = (
    Tool(
        name="get_weather", text="city", number="days", values=_CITIES, request="How is the weather in {} for {} days?"
    ),
    Tool(name="book_hotel", text="city", number="nights", values=_CITIES, request="Book a hotel in {} for {} nights."),
    Tool(name="send_money", text="person", number="amount", values=_NAMES, request="Send {} the amount of {} dollars."),
    Tool(name="call_back", text="person", number="minutes", values=_NAMES, request="Call {} back in {} minutes."),
    Tool(name="order_goods", text="item", number="count", values=_GOODS, request="Order {}, a count of {}."),
    Tool(
        name="find_price", text="item", number="limit", values=_GOODS, request="Find {} that cost less than {} dollars."
    ),
    Tool(name="set_heating", text="room", number="degrees", values=_ROOMS, request="Heat the {} to {} degrees."),
    Tool(
        name="set_light", text="room", number="percent", values=_ROOMS, request="Dim the light in the {} to {} percent."
    ),
)
"""All tools there are; an item describes some of them."""
SHOTS = 2


def _draw(rng: random.Random, level: int, place: float, tokens: Callable[[str], int]) -> Item:
    """A request with `level` tools to choose from, whose values no example uses."""
    del place, tokens
    if not 2 <= level <= len(TOOLS):
        raise BadData(f"tool_call describes 2 to {len(TOOLS)} tools, got {level}")
    described = rng.sample(TOOLS, level)
    while True:
        asked = [(rng.choice(described), rng.randrange(10), rng.randint(2, 99)) for _ in range(SHOTS + 1)]
        values = {tool.values[which] for tool, which, _ in asked}
        if len(values) == len({number for *_, number in asked}) == SHOTS + 1:
            break
    head = "".join(f"Tool: {tool.name}({tool.text}: string, {tool.number}: integer)\n" for tool in described)
    shots = "".join(f"\nRequest: {_request(*one)}\nCall: {_call(*one)}\n" for one in asked[:-1])
    tool, which, number = asked[-1]
    other = rng.choice([one for one in described if one is not tool])
    if rng.random() < 0.5:
        changed = [which, rng.choice([n for n in range(2, 100) if n != number])]
    else:
        changed = [(which + rng.randint(1, 9)) % 10, number]
    text = tool.values[which], tool.values[changed[0]]
    options = [_json(one, *values) for one in (tool, other) for values in ((text[0], number), (text[1], changed[1]))]
    order = rng.sample(range(len(options)), len(options))
    return Item(
        prompt=f"{head}{shots}\nRequest: {_request(tool, which, number)}\nCall:",
        options=tuple(f" {options[i]}" for i in order),
        right=order.index(0),
        labels={"tools": str(level)},
    )


def _request(tool: Tool, which: int, number: int) -> str:
    return tool.request.format(tool.values[which], number)


def _call(tool: Tool, which: int, number: int) -> str:
    return _json(tool, tool.values[which], number)


def _json(tool: Tool, text: str, number: int) -> str:
    return json.dumps({"name": tool.name, "arguments": {tool.text: text, tool.number: number}})


def _correct(item: Item, text: str) -> bool:
    """The text is one JSON value, and it is the expected one."""
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return json.dumps(told, sort_keys=True) == json.dumps(json.loads(item.answer), sort_keys=True)


TOOL_CALL = Task(
    name="tool_call",
    about="a request written as a JSON call",
    unit="tools",
    levels=(2, 4),
    draw=_draw,
    correct=_correct,
)
"""Levels are numbers of tools described."""
