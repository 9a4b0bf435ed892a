"""A study on a Ray cluster of two nodes, on this machine."""

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.search.toys import SPACE, Gated, Moody, Toy, finished, spec

from befit.arch.space import Arch
from befit.errors import BefitError
from befit.search.cluster import Cluster
from befit.search.halving import Halving
from befit.search.pool import Crew
from befit.search.study import run_study
from befit.search.trial import Fidelity, Finished, Job, Outcome, Report, funnel


@contextmanager
def rays_own_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one CPU each."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'befit[ray]'")
    with rays_own_warnings():
        from ray.cluster_utils import Cluster as LocalCluster

        local = LocalCluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        local.add_node(num_cpus=1)
        try:
            yield local
        finally:
            local.shutdown()


def where(arch: Arch, fidelity: Fidelity, report: Report) -> Outcome:
    import ray

    time.sleep(0.2)
    return Outcome(value=0.5, details={"node": ray.get_runtime_context().get_node_id()})


def test_without_ray_or_without_a_cluster_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with rays_own_warnings(), pytest.raises(BefitError, match="there is no Ray cluster at 'nonsense'"):
        Cluster(Toy(tmp_path), Crew(ray="nonsense"))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BefitError, match=r"pip install 'befit\[ray\]'"):
        Cluster(Toy(tmp_path), Crew(ray="auto"))


def test_a_study_is_complete_and_uses_both_nodes(cluster: Any, tmp_path: Path) -> None:
    with rays_own_warnings():
        found = run_study(spec(tmp_path, trials=6), SPACE, where, crew=Crew(ray=cluster.address, workers=0))
    assert [one.state for one in found] == ["scored"] * 6
    assert len({one.details["node"] for one in found}) == 2


def test_successive_halving_reaches_the_tasks(cluster: Any, tmp_path: Path) -> None:
    told = spec(tmp_path, trials=6, halving=Halving())
    with rays_own_warnings():
        found = run_study(told, SPACE, Toy(tmp_path / "done", 0), crew=Crew(ray=cluster.address, workers=1))
    stages = funnel(found)
    assert stages.pruned > 0 and stages.scored == len(finished(tmp_path / "done")) == 6 - stages.pruned


def test_crashes_and_hangs_are_failed_trials(cluster: Any, tmp_path: Path) -> None:
    jobs = [
        Job(
            number=depth,
            arch=SPACE.arch({"width": 8, "depth": depth, "mixer": "conv", "kernel": 7}),
            fidelity=Fidelity(),
        )
        for depth in (1, 2, 3, 4)
    ]
    ended = dict[int, Finished]()
    with (
        rays_own_warnings(),
        closing(Cluster(Moody(tmp_path), Crew(ray=cluster.address, workers=2), timeout=2.0)) as pool,
    ):
        assert pool.free == 2
        while len(ended) < 4:
            while pool.free and jobs:
                pool.submit(jobs.pop())
            ended |= {one.number: one for one in pool.wait(lambda number, epoch, value: True, 1.0)}
    assert {number: one.reason for number, one in ended.items()} == {1: "crash", 2: "nan", 3: "crash", 4: "timeout"}
    assert "ZeroDivisionError" in ended[3].message and ended[4].seconds == 2.0


def test_a_node_that_goes_away_takes_its_trial_with_it_as_killed(cluster: Any, tmp_path: Path) -> None:
    import ray

    (tmp_path / "done").mkdir()
    jobs = [Job(number=number, arch=arch, fidelity=Fidelity()) for number, arch in enumerate(SPACE.enumerate())][:3]
    with rays_own_warnings():
        ray.init(address=cluster.address, log_to_driver=False)  # before there is a third node, so as not to sit on that
        try:
            node = cluster.add_node(num_cpus=1)
            cluster.wait_for_nodes()
            with closing(Cluster(Gated(tmp_path, first=0), Crew(ray=cluster.address, workers=0))) as pool:
                assert pool.free == 3
                for one in jobs:
                    pool.submit(one)
                end = time.monotonic() + 60
                while len(pool.begun) < 3:
                    assert not pool.wait(lambda number, epoch, value: True, 0.2) and time.monotonic() < end
                cluster.remove_node(node, allow_graceful=False)
                (tmp_path / "go").touch()
                ended = list[Finished]()
                while len(ended) < 3 and time.monotonic() < end:
                    ended += pool.wait(lambda number, epoch, value: True, 1.0)
        finally:
            ray.shutdown()
    assert sorted(str(one.reason) for one in ended) == ["None", "None", "killed"]
