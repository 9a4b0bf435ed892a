"""The report of a run: plain values in, one HTML file out that opens from disk without a network.

`render` is pure and takes the run's `summary.json` as a mapping; `write_report` puts the page on disk in one step. Nothing
here imports the rest of befit, and no number is computed that the summary could have stated, apart from ratios and counts
for the reader. A summary may be incomplete (a run that has only begun): what is missing is left out.
"""

from befit.report.page import render, write_report

__all__ = ["render", "write_report"]
