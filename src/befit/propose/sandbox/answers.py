"""Reading what a candidate left, as if an enemy had written it: plain files of bounded size, JSON and raw arrays, no pickles.

Called when no process of the candidate is left, so nothing changes while it is read.
"""

import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from befit.errors import REASONS, TrialFailed

ARRAYS = "answer.safetensors"
"""The file with all arrays of an answer."""

MOST_JSON_BYTES = 1 << 20
HEADER_BYTES = 1 << 16
MOST_MESSAGE = 1000


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What an array of the answer must be; anything else is no answer."""

    shape: tuple[int, ...]
    """Exact shape."""

    dtype: str = "float32"
    """numpy's name of the number format."""

    finite: bool = True
    """Whether NaN and infinity are refused."""

    @property
    def bytes(self) -> int:
        """Size of the numbers."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def read_plain(path: Path, most: int) -> bytes:
    """The content of a plain file of at most `most` bytes; links, pipes and devices are refused.

    Raises:
        TrialFailed: It is missing, something else, or larger (reason "output").
    """
    try:
        place = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise TrialFailed(f"left no readable {path.name}: {error.strerror}", reason="output") from error
    try:
        found = os.fstat(place)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise TrialFailed(f"left a {path.name} that is not a plain file", reason="output")
        if found.st_size > most:
            raise TrialFailed(f"left a {path.name} of {found.st_size} bytes, at most {most} are read", reason="output")
        with open(place, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(place)


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def read_answer(path: Path) -> dict[str, Any]:
    """The answer's value; the failure that the candidate reported is raised.

    Raises:
        TrialFailed: It reported a failure, or left no answer of the documented form (reason "output").
    """
    text = read_plain(path, MOST_JSON_BYTES)
    try:
        told = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise TrialFailed(f"left an answer that is not JSON: {str(error)[:200]}", reason="output") from error
    match told:
        case {"ok": True, "value": dict(value), **rest} if not rest:
            return value
        case {"ok": False, "reason": str(reason), "message": str(message), **rest} if not rest and reason in REASONS:
            raise TrialFailed(message[:MOST_MESSAGE], reason=reason)
        case _:
            raise TrialFailed("left an answer of another form", reason="output")


def read_arrays(folder: Path, expected: Mapping[str, Expected]) -> dict[str, np.ndarray]:
    """The arrays of the answer, exactly those that were expected.

    Raises:
        TrialFailed: Missing, more, another shape or format (reason "output"), or not finite (reason "nan").
    """
    if not expected:
        return {}
    content = read_plain(folder / ARRAYS, HEADER_BYTES + sum(one.bytes for one in expected.values()))
    try:
        arrays = load(content)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise TrialFailed(f"left a {ARRAYS} that cannot be read: {str(error)[:200]}", reason="output") from error
    if set(arrays) != set(expected):
        names = f"{sorted(arrays)[:8]} instead of {sorted(expected)}"
        raise TrialFailed(f"left the arrays {names}"[:MOST_MESSAGE], reason="output")
    for name, wanted in expected.items():
        array = arrays[name]
        if array.shape != wanted.shape or array.dtype != np.dtype(wanted.dtype):
            found = f"{array.dtype} of shape {array.shape}"
            raise TrialFailed(f"{name} is {found}, expected {wanted.dtype} of shape {wanted.shape}", reason="output")
        if wanted.finite and not np.isfinite(array).all():
            raise TrialFailed(f"{name} has numbers that are not finite", reason="nan")
    return arrays


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows (N, classes) that are largest at the label (N); computed where the labels are, never by a candidate."""
    return float((logits.argmax(axis=1) == labels).mean())
