"""A coordinator of its own, to be killed: `python -m tests.search.coordinator FOLDER WORKERS TRIALS [STORAGE]`."""

import sys
from pathlib import Path

from befit.search.pool import Crew
from befit.search.study import run_study
from tests.search.toys import SPACE, Gated, spec

if __name__ == "__main__":
    folder, workers, trials, *storage = sys.argv[1:]
    told = spec(Path(folder), trials=int(trials), searcher="evolution", storage=storage[0] if storage else None)
    run_study(told, SPACE, Gated(Path(folder)), crew=Crew(workers=int(workers)))
