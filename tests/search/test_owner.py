"""Who is dead: told for processes that live, that died, that were replaced, and on other machines."""

import os
import subprocess
import sys
import time

from befit.search.owner import ENDED, PULSE, Pulse, Watch, machine, started, this_owner


def test_a_process_is_known_by_its_number_and_its_start() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        begun = started(process.pid)
        assert begun is not None and begun == started(process.pid) != started(os.getpid())
        watch = Watch(own=this_owner())
        assert not watch.dead(f"{machine()}:{process.pid}:{begun}:x", {})
        assert watch.dead(f"{machine()}:{process.pid}:{begun}0:x", {}), "another process has that number now"
    finally:
        process.kill()
        # Not yet waited for, it is a zombie: its number is taken, but nobody is at home.
        while started(process.pid) is not None:
            time.sleep(0.01)
        assert watch.dead(f"{machine()}:{process.pid}:{begun}:x", {})
        process.communicate()
    assert started(process.pid) is None


def test_oneself_is_alive_and_two_studies_of_one_process_are_two() -> None:
    one, other = this_owner(), this_owner()
    assert one != other and not Watch(own=one, grace=0).dead(one, {})
    assert Watch(own=one).dead(other, {PULSE + other: ENDED})


def test_another_machine_is_dead_when_its_pulse_stands_still() -> None:
    watch, far = Watch(own=this_owner(), grace=0.05), "elsewhere/1:1:1:x"
    assert not watch.dead(far, {PULSE + far: 0})
    time.sleep(0.06)
    assert not watch.dead(far, {PULSE + far: 1}), "it has grown"
    time.sleep(0.06)
    assert watch.dead(far, {PULSE + far: 1})
    assert not Watch(own=this_owner(), grace=0.05).dead(far, {}), "a new observer has seen nothing yet"


def test_a_pulse_grows_and_ends() -> None:
    told = list[tuple[str, int]]()
    with Pulse("me", lambda name, value: told.append((name, value)), seconds=0.005):
        while len(told) < 4:
            time.sleep(0.005)
    assert told[:4] == [("pulse:me", value) for value in range(4)] and told[-1] == ("pulse:me", ENDED)
