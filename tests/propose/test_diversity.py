from statistics import fmean, median

import pytest
from tests.propose.proposals import network, row

from befit.propose.diversity import alike
from befit.propose.fingerprint import runs, similarity

DEEPER = network(8).replace(
    "nn.ReLU()", "nn.ReLU(), nn.Conv2d(8, 8, 5, padding=2, groups=8), nn.GELU(), nn.Dropout(0.3)"
)


def test_all_pairs_of_the_trained_networks_are_compared() -> None:
    sources = [network(8), DEEPER, network(16), network(8).replace("body", "trunk")]
    rows = [row(number=n, accuracy=0.5 + 0.1 * n, source=source) for n, source in enumerate(sources)]
    rows += [row("allowed", number=4, source=DEEPER, accuracy=0.9), row(number=5, source="{}", accuracy=0.99)]
    told = alike(rows)
    seen = [runs(source) for source in reversed(sources)]  # the best first
    truth = [[similarity(a, b) for b in seen] for a in seen]
    assert [one["number"] for one in told["names"]] == [3, 2, 1, 0] and told["networks"] == 4
    assert told["matrix"] == truth and truth[0][3] == 1  # only a name differs
    others = [[value for at, value in enumerate(line) if at != place] for place, line in enumerate(truth)]
    assert told["mean"] == pytest.approx(fmean(value for line in others for value in line))
    assert told["nearest"] == pytest.approx(median(map(max, others)))
    few = alike(rows, most=3, shown=2)
    assert few["networks"] == 2 and len(few["matrix"]) == 2  # the genome's text counts among the three best


def test_one_network_is_like_no_other() -> None:
    for rows in ([], [row(source=network(8))]):
        told = alike(rows)
        assert told["mean"] is None and told["nearest"] is None and len(told["matrix"]) == len(rows)
