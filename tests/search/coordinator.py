"""A coordinator of its own, to be killed: `python -m tests.search.coordinator FOLDER WORKERS TRIALS [STORAGE [NAME]]`."""

import sys
from pathlib import Path

from tests.search.toys import SMALL, SPACE, Gated, spec

from befit.search.pool import Crew
from befit.search.study import run_study

if __name__ == "__main__":
    folder, workers, trials, *more = sys.argv[1:]
    place = dict(zip(("storage", "name"), more, strict=False))
    told = spec(Path(folder), trials=int(trials), searcher="evolution", options=SMALL, **place)
    run_study(told, SPACE, Gated(Path(folder)), crew=Crew(workers=int(workers)))
