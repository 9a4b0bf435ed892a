"""Published data that some tests compare with: looked for in `data/` beside src, or where BEFIT_DATA says."""

import os
from pathlib import Path

DATA = Path(os.environ.get("BEFIT_DATA") or Path(__file__).parents[1] / "data")
"""A folder with, among others, nas_bench_201.csv.gz, zero_cost_nb201.json.gz, cifar10/ and mnist/; may be absent."""
