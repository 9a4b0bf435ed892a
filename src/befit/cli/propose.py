"""Verbs for networks that are proposed as code: propose, fingerprint."""

import json
from collections.abc import Iterator, Mapping, Sequence
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
        sandbox: str = "native",
        in_shape: tuple[int, int, int, int] = (2, 3, 32, 32),
        classes: int = 10,
        seconds: float = 60.0,
    ) -> None:
        """Keys of proposed networks, one line a file: equal keys mean the same network.

        Args:
            files: Python files with a class Net(in_shape, out_shape, prm, device).
            json: A list of {"file", "whitespace", "tree", "graph", "recipe"} instead.
            build: Run each file in the sandbox to build the network, for the graph.
            sandbox: What holds the files while they run: native, bwrap, docker:IMAGE, or none (files that you trust).
            in_shape: Images, channels, height and width to build for.
            classes: Classes to build for.
            seconds: Longest time for building one network.
        """
        shapes = {"in_shape": in_shape, "out_shape": (classes,)}
        show_fingerprints(files, as_json=json, sandbox=sandbox if build else "", shapes=shapes, seconds=seconds)

    tyro.cli(fingerprint, args=arguments, prog="befit fingerprint")


def show_fingerprints(
    files: Sequence[Path], *, as_json: bool, sandbox: str, shapes: Mapping[str, tuple[int, ...]], seconds: float
) -> None:
    """Print the keys of every file that can be read, then fail if some could not; without a sandbox nothing is built."""
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
    if sandbox and rows:
        for row, (graph, why) in zip(rows, _graphs(sources, sandbox, shapes, seconds), strict=True):
            row["graph"] = graph
            if graph is None:
                say(f"{row['file']}: no graph: {why}")
    if as_json:
        show_lines([json.dumps(rows, indent=1)])
    else:
        keys = ("whitespace", "tree", "graph", "recipe")
        lines = ["  ".join([*((row[key] or "-").ljust(32) for key in keys), row["file"]]) for row in rows]
        show_lines(["  ".join([*(key.ljust(32) for key in keys), "file"]), *lines] if lines else [])
    if wrong:
        raise BadProposal("\n".join(wrong))


def _graphs(
    sources: Sequence[str], backend: str, shapes: Mapping[str, tuple[int, ...]], seconds: float
) -> Iterator[tuple[str | None, str]]:
    """Key of each file's operations, or None and why."""
    from befit.propose.network import PRM
    from befit.propose.sandbox.box import Sandbox
    from befit.propose.sandbox.limits import Limits
    from befit.propose.sandbox.tasks import inspect

    with Sandbox(backend=backend) as sandbox:
        for source in sources:
            arguments = {**shapes, "prm": PRM}
            result = sandbox.run(inspect, source=source, arguments=arguments, limits=Limits(wall_seconds=seconds))
            graph = str(result.value.get("graph", ""))
            yield graph or None, result.message or "the network looks at numbers"


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
