"""Read numbers from a summary that may be incomplete, and write them as people read them.

Reading never raises: a value of the wrong kind counts as absent. Writing gives at most three significant digits and a
human unit (MiB, ms, M); `-` values use the true minus sign and all gaps are narrow no-break spaces, so that a number
never breaks across lines.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

GAP = "\u202f"
ABSENT = "–"
_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_BYTES = (("B", 1.0), ("KiB", 2.0**10), ("MiB", 2.0**20), ("GiB", 2.0**30), ("TiB", 2.0**40))
_AMOUNTS = (("", 1.0), ("K", 1e3), ("M", 1e6), ("B", 1e9), ("T", 1e12))
_TIMES = (("ns", 1e-6), ("µs", 1e-3), ("ms", 1.0), ("s", 1e3))
_NAMES = {
    "cache_bytes": "KV cache",
    "decode_ms": "decode per token",
    "flops": "FLOPs",
    "macs": "multiply-adds",
    "params": "parameters",
    "tokens_per_s": "throughput",
    "weight_bytes": "weights",
}


def number(value: Any) -> float | None:
    """The value if it is a finite number (bool is not), else None. Whole numbers keep their exact type."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if isinstance(value, int) or math.isfinite(value) else None


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def entries(value: Any) -> list[Mapping[str, Any]]:
    """The mappings of a list, in order; anything else is left out."""
    return [item for item in sequence(value) if isinstance(item, Mapping)]


def sequence(value: Any) -> Sequence[Any]:
    """The value if it is a list or tuple, else an empty list."""
    return value if isinstance(value, list | tuple) else []


def dig(value: Any, *path: str) -> float | None:
    """The number at the end of a path of keys, or None if any step is missing."""
    for key in path:
        value = mapping(value).get(key)
    return number(value)


def ratio(part: float | None, whole: float | None) -> float | None:
    """part / whole, or None where either is missing or the whole is zero."""
    return part / whole if part is not None and whole else None


def factor(given: Any) -> float | None:
    """What a bound given as `60%` or `2x` multiplies the parent's cost by; None if it was given otherwise."""
    text = given.strip() if isinstance(given, str) else ""
    divisor = {"%": 100.0, "x": 1.0}.get(text[-1:])
    try:
        return number(float(text[:-1]) / divisor) if divisor else None
    except ValueError:
        return None


def significant(value: float | None, digits: int = 3) -> str:
    """Three significant digits; powers of ten outside 0.001 .. 10 million."""
    if value is None:
        return ABSENT
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if not -3 <= exponent < 7:
        return _scientific(value, exponent)
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return _minus(f"{rounded:.{decimals}f}")


def whole(value: float | None) -> str:
    """A count: digits in groups of three, or a power of ten from a thousand million on."""
    if value is None:
        return ABSENT
    if abs(value) >= 10**9:
        return _scientific(value, math.floor(math.log10(abs(value))))
    return _minus(f"{round(value):,}".replace(",", GAP))


def percent(fraction: float | None) -> str:
    """A share: whole percents, one decimal below one percent."""
    if fraction is None:
        return ABSENT
    return _minus(f"{100 * fraction:.{0 if abs(fraction) >= 0.01 or fraction == 0 else 1}f}") + GAP + "%"


def accuracy(fraction: float | None) -> str:
    """A share of images in percent, one decimal."""
    return ABSENT if fraction is None else _minus(f"{100 * fraction:.1f}") + GAP + "%"


def duration(seconds: float | None) -> str:
    """Seconds as `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds is None:
        return ABSENT
    if seconds < 59.5:
        return f"{seconds:.{1 if seconds < 9.95 else 0}f}{GAP}s"
    total = round(seconds)
    if total < 3600:
        return f"{total // 60}{GAP}min {total % 60}{GAP}s"
    return f"{total // 3600}{GAP}h {total % 3600 // 60}{GAP}min"


def amount(value: float | None) -> str:
    """A number of things with K, M, B or T."""
    return _scaled(value, _AMOUNTS)


def size(value: float | None) -> str:
    """Bytes in binary units."""
    return _scaled(value, _BYTES)


def milliseconds(value: float | None) -> str:
    """A latency given in ms, in the unit that suits it."""
    return _scaled(value, _TIMES)


def cost(name: str, value: float | None) -> str:
    """A cost in human units, by what its name ends with."""
    if value is None:
        return ABSENT
    if name.endswith("_bytes"):
        return size(value)
    if name.endswith("_ms"):
        return milliseconds(value)
    if name.endswith("_mib"):
        return size(value * 2.0**20)
    if name in ("params", "flops", "macs"):
        return amount(value)
    return significant(value) + (f"{GAP}tokens/s" if name == "tokens_per_s" else "")


def cost_name(name: str) -> str:
    """A cost's name without its unit: `latency_ms` is `latency`."""
    stem = name
    for unit in ("_bytes", "_ms", "_mib"):
        stem = stem.removesuffix(unit)
    return _NAMES.get(name, stem.replace("_", " "))


def unit_of(name: str, largest: float) -> tuple[str, float]:
    """The unit for an axis of this cost and what to divide by, so that the largest value reads well."""
    if name == "tokens_per_s":
        return "tokens/s", 1.0
    ladder = _BYTES if name.endswith("_bytes") else _TIMES if name.endswith("_ms") else _AMOUNTS
    return _rung(largest, ladder)


def _scaled(value: float | None, ladder: tuple[tuple[str, float], ...]) -> str:
    if value is None:
        return ABSENT
    unit, divisor = _rung(value, ladder)
    return significant(value / divisor) + (GAP + unit if unit else "")


def _rung(value: float, ladder: tuple[tuple[str, float], ...]) -> tuple[str, float]:
    """The highest rung that the value, rounded to three digits, reaches; for zero the one that divides by one."""
    if not value:
        return next(rung for rung in ladder if rung[1] == 1.0)
    reached = [rung for rung in ladder if abs(value) >= 0.9995 * rung[1]]
    return reached[-1] if reached else ladder[0]


def _scientific(value: float, exponent: int) -> str:
    # A whole number may be larger than any float; true division of two whole numbers still works.
    mantissa = value / 10**exponent if exponent >= 0 else value * 10.0**-exponent
    if abs(float(f"{mantissa:.1f}")) >= 10:
        mantissa, exponent = mantissa / 10, exponent + 1
    return _minus(f"{mantissa:.1f}") + f"{GAP}×{GAP}10{str(exponent).translate(_SUPERSCRIPT)}"


def _minus(text: str) -> str:
    return text.replace("-", "−")
