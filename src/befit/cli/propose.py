"""Verbs for networks that are proposed as code: propose, fingerprint."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from befit.cli.shown import quiet, say, show_lines, show_rows
from befit.errors import BadProposal

if TYPE_CHECKING:
    from befit.propose.config import ProposeConfig


def fingerprint_verb(arguments: Sequence[str]) -> None:
    """Keys of proposed networks: equal keys mean the same network."""

    def fingerprint(
        files: tyro.conf.Positional[list[Path]],
        /,
        json: bool = False,
        build: bool = True,
        in_shape: tuple[int, int, int, int] = (2, 3, 32, 32),
        classes: int = 10,
        seconds: float = 60.0,
    ) -> None:
        """Keys of proposed networks, one line a file: equal keys mean the same network.

        Args:
            files: Python files with a class Net(in_shape, out_shape, prm, device).
            json: A list of {"file", "whitespace", "tree", "graph", "recipe"} instead.
            build: Run each file in a process of its own to build the network, for the graph; not a wall: only files you trust.
            in_shape: Images, channels, height and width to build for.
            classes: Classes to build for.
            seconds: Longest time for building one network.
        """
        show_fingerprints(files, as_json=json, build=build, in_shape=in_shape, out_shape=(classes,), seconds=seconds)

    tyro.cli(fingerprint, args=arguments, prog="befit fingerprint")


def show_fingerprints(
    files: Sequence[Path],
    *,
    as_json: bool,
    build: bool,
    in_shape: tuple[int, ...],
    out_shape: tuple[int, ...],
    seconds: float,
) -> None:
    """Print the keys of every file that can be read, then fail if some could not."""
    from befit.propose.child import built_in_child
    from befit.propose.fingerprint import keys_of

    if not files:
        raise BadProposal("no file given: befit fingerprint FILE …")
    rows, sources, wrong = list[dict[str, Any]](), list[str](), list[str]()
    for file in files:
        try:
            source = _text(file)
            keys = keys_of(source)
        except BadProposal as error:
            wrong.append(f"{file}: {error}")
            continue
        sources.append(source)
        rows.append(
            {"file": str(file), "whitespace": keys.whitespace, "tree": keys.tree, "graph": None, "recipe": keys.recipe}
        )
    if build:
        for row, built in zip(rows, built_in_child(sources, in_shape, out_shape, seconds=seconds), strict=True):
            row["graph"] = built.key
            if built.key is None:
                say(f"{row['file']}: no graph: {built.error}")
    if as_json:
        show_lines([json.dumps(rows, indent=1)])
    else:
        keys = ("whitespace", "tree", "graph", "recipe")
        lines = ["  ".join([*((row[key] or "-").ljust(32) for key in keys), row["file"]]) for row in rows]
        show_lines(["  ".join([*(key.ljust(32) for key in keys), "file"]), *lines] if lines else [])
    if wrong:
        raise BadProposal("\n".join(wrong))


def _text(file: Path) -> str:
    """The text of a Python file; `BadProposal` if there is none."""
    import tokenize

    try:
        with tokenize.open(file) as opened:  # as Python itself finds the encoding
            return opened.read()
    except FileNotFoundError:
        raise BadProposal("there is no such file") from None
    except OSError as error:
        raise BadProposal(f"cannot be read: {error.strerror}") from None
    except (SyntaxError, UnicodeDecodeError) as error:
        raise BadProposal(f"not Python: {error}", reason="parse") from None


def propose_verb(arguments: Sequence[str]) -> None:
    """Let a model write image classifiers for your data."""
    from befit.propose.config import ProposeConfig

    run_propose(tyro.cli(ProposeConfig, args=arguments, prog="befit propose"))


def run_propose(config: "ProposeConfig") -> None:
    """Run the loop with progress bars, and print the funnel and the best networks."""
    from befit.progress import Bars
    from befit.propose.loop import propose
    from befit.propose.summary import lines, table_rows

    if config.sandbox == "none":
        say(
            "--sandbox none: proposed code runs with your rights, on your files and your network; only its time is held."
        )
    quiet()
    with Bars() as progress:
        summary = propose(config, progress=progress, say=say)
    show_rows(table_rows(summary), summary["title"])
    show_lines(lines(summary))
