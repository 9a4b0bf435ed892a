"""Sections of docs/results.md on long prompts and on several processes."""

from collections.abc import Mapping, Sequence
from typing import Any

from records import RESULTS, made_at, recorded, table

ROUNDS = ("puzzle_rounds", "puzzle_rounds_longer")
"""Recorded comparisons of rounds, shorter healing first."""


def scale_sections() -> dict[str, str]:
    """By title; only what is recorded."""
    sections = dict[str, str]()
    if (found := recorded(RESULTS / "prefill_passes.json")) is not None:
        sections["Long prompts in passes"] = passes_block(found)
    if (found := recorded(RESULTS / "score_processes.json")) is not None:
        sections["Several processes"] = processes_block(found)
    rounds = [found for name in ROUNDS if (found := recorded(RESULTS / f"{name}.json")) is not None]
    if rounds:
        sections["Healing in rounds"] = rounds_block(rounds)
    return sections


def rounds_block(recordings: Sequence[Mapping[str, Any]]) -> str:
    """KL to the parent after all healing, for each number of rounds, at equal tokens."""
    settings, rows = recordings[0]["settings"], []
    for found in recordings:
        kls = {(row["seed"], row["rounds"]): row["kl"] for row in found["rows"]}
        for seed in sorted({seed for seed, _ in kls}):
            one, two = kls[seed, 1], kls[seed, 2]
            rows.append(
                [
                    f"{found['settings']['heal_tokens']:,}, seed {seed}",
                    f"{one:.3f}",
                    f"{two:.3f}",
                    f"{two / one - 1:+.1%}",
                ]
            )
    return (
        (
            f"`python benchmarks/puzzle_rounds.py` ({recordings[0]['device']}, the embedded parent, {settings['budget']}, "
            f"{settings['local_tokens']:,} tokens for the library): KL to the parent in nats a token after healing. Two rounds "
            "heal with as many tokens as one, half of them before blocks are scored and chosen again.\n\n"
        )
        + table(["tokens of healing", "1 round", "2 rounds", "difference"], rows)
        + made_at(*recordings)
    )


def passes_block(found: Mapping[str, Any]) -> str:
    """Whole prompts against the sum of passes."""
    rows = [
        [
            f"{row['prompt']:,} tokens",
            *(f"{row[name]:,.0f}" for name in ("whole_ms", "every_ms", "passes_ms")),
            f"{row['passes_ms'] / row['every_ms'] - 1:+.1%}",
            f"{row['passes_ms'] / row['whole_ms'] - 1:+.1%}",
        ]
        for row in found["rows"]
    ]
    return (
        f"`python benchmarks/prefill_passes.py` ({found['device']}, one thread, {found['engine']}, fp32): milliseconds of the "
        f"processor for one request's prefill by the embedded parent, in passes of {found['tokens']} tokens.\n\n"
    ) + table(["", "at once", "every pass", "three passes", "against every pass", "against at once"], rows)


def processes_block(found: Mapping[str, Any]) -> str:
    """One process against several."""
    many, rows = str(found["processes"]), []
    for name, kind, key in (
        (f"scores of {found['score']['replacements']} replacements", "score", "seconds"),
        ("a step of healing", "heal", "seconds_a_step"),
    ):
        own = found[kind]
        times = [f"{own[key][size]:.2f} s" for size in ("1", many)]
        rows.append([name, *times, f"{own['speedup']:.2f}", f"{own['largest_difference']:.1g}"])
    return (
        (
            f"`benchmarks/score_processes.py` with {many} processes and with one ({found['device']}, torch "
            f"{found['versions']['torch']}):\n\n"
        )
        + table(["", "one process", f"{many} processes", "times as fast", "largest difference, nats"], rows)
        + made_at(found)
    )
