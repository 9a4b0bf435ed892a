"""Verbs for image networks: search, predict; and their part of cut and export."""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from befit.cli.shown import find_own_modules, say, show_lines, show_rows
from befit.errors import BefitError

if TYPE_CHECKING:
    from befit.search.config import SearchConfig


def search_verb(arguments: Sequence[str]) -> None:
    """Search an image classifier for your data that keeps a budget."""
    from befit.search.config import SearchConfig

    run_search(tyro.cli(SearchConfig, args=arguments, prog="befit search"))


def run_search(config: "SearchConfig") -> None:
    """Run the pipeline that the searcher belongs to, with progress bars, and print the finalists."""
    from befit.budget import Budget
    from befit.progress import Bars
    from befit.search.config import SAMPLED
    from befit.search.summary import lines, table_rows

    find_own_modules()
    if config.searcher in SAMPLED and find_spec("optuna") is None:
        raise BefitError("a search needs Optuna: pip install 'befit[search]'")
    if config.budget is not None:
        Budget.parse(config.budget)  # the cheapest mistake to find, before any image is read
    if config.searcher in SAMPLED:
        from befit.search.pipeline import search
    else:
        from befit.oneshot.pipeline import search
    with Bars() as progress:
        summary = search(config, progress=progress, say=say)
    show_rows(table_rows(summary), summary["title"])
    show_lines(lines(summary))


def measure_space(arguments: Sequence[str]) -> None:
    """Measure random networks of a space on this device; the table that a search elsewhere takes as --latency-table."""
    from befit.progress import Bars
    from befit.rundir import read_json
    from befit.search.config import SearchConfig
    from befit.search.pipeline import measure_only

    config = tyro.cli(SearchConfig, args=arguments, prog="befit measure")
    find_own_modules()
    with Bars() as progress:
        file = measure_only(config, progress=progress, say=say)
    told = read_json(file)
    errors = sorted(abs(one["predicted_ms"] / one["measured_ms"] - 1) for one in told["held_out"])
    show_lines(
        [
            f"{told['fitted']} networks of {told['blueprint']} fitted on {told['machine']} ({told['target']['engine']})",
            f"off by {errors[len(errors) // 2]:.0%} at the median and {errors[-1]:.0%} at worst on {len(errors)} others",
            f"table   {file}",
        ]
    )


def predict_verb(arguments: Sequence[str]) -> None:
    """Say what is in pictures, by the network that a search left."""

    def predict(folder: tyro.conf.Positional[Path], images: tyro.conf.Positional[list[Path]], /, top: int = 1) -> None:
        """Label and probability of each picture; folders are read through.

        Args:
            folder: best/ of a run of `befit search`, or the run.
            images: Pictures, or folders of pictures.
            top: How many labels to give for each.
        """
        from befit.vision.checkpoint import load_classifier

        find_own_modules()
        classifier = load_classifier(folder)
        for image in images:
            found = classifier.predict(image)
            for one in found if isinstance(found, list) else [found]:
                ranked = sorted(one.probabilities.items(), key=lambda item: -item[1])[:top]
                show_lines(["\t".join([one.image, *(f"{label}\t{share:.4f}" for label, share in ranked)])])

    tyro.cli(predict, args=arguments, prog="befit predict")


def export_search(folder: Path, out: Path | None, *, int8: bool, data: str | None, size: int | None) -> list[str]:
    """Write the network of a search as ONNX and check it there; what to print."""
    from befit.budget import human
    from befit.export.onnx import export_onnx
    from befit.search.finish import images_of

    find_own_modules()
    images = images_of(folder, data, size)
    made = export_onnx(folder, out or folder / "model.onnx", data=images, int8=int8)
    told = [f"file    {made.path} ({human('weight_bytes', made.size_bytes)})"]
    told.append(f"check   logits differ by at most {made.max_difference:.1e} under ONNX Runtime")
    if made.agreement is not None:
        told.append(f"8 bits  the same class as in fp32 for {made.agreement:.1%} of the validation images")
    if made.accuracy is not None:
        told.append(f"right   {made.accuracy:.2%} of the validation images, under ONNX Runtime")
    return told


def cut_search(run: Path, out: Path | None, budget: str) -> list[str]:
    """Take the best network inside another budget out of shared weights; what to print."""
    from befit.oneshot.cut import cut
    from befit.progress import Bars

    find_own_modules()
    words = re.sub(r"[^\w.%]+", "-", budget).strip("-")
    with Bars() as progress:
        return cut(run, out or run / "cuts" / words, budget=budget, progress=progress).lines()
