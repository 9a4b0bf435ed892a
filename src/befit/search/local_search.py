"""Local search: move to the first neighbour that is better, start anew at random where none is.

Source: White et al., Exploring the Loss Landscape in Neural Architecture Search (UAI 2021), which finds it hard to beat
where neighbours are few and scores are not too noisy. Where the search stands is not kept: it is read again from the
trials each time.
"""

from dataclasses import dataclass, field
from typing import Any

from befit.arch.space import Arch
from befit.search.searcher import Told, View


@dataclass(frozen=True, kw_only=True)
class LocalSearch:
    """First improvement with restarts."""

    def propose(self, view: View) -> Arch:
        walk = replayed(view)
        if walk.arch is not None:
            open_ = list(walk.around.values())
            view.rng.shuffle(open_)
            if (found := view.first(open_)) is not None:
                return found
        return view.draw()


@dataclass(kw_only=True)
class Walk:
    """Where a local search stands after some trials."""

    arch: Arch | None = None
    value: float = 0.0
    around: dict[Any, Arch] = field(default_factory=dict[Any, Arch])
    """The neighbours, by key."""


def replayed(view: View) -> Walk:
    """Walk through the trials again.

    A better arch is always moved to: as a rule it is a neighbour, with several workers it may be one of an earlier place.
    A worse one is moved to only as a restart, when the place has no neighbour left to try. A neighbour that an earlier
    climb has seen costs no trial: if it is better, the walk goes there at once.
    """
    walk = Walk()
    seen = dict[Any, Told]()
    running = {view.space.key(arch) for arch in view.running}
    for told in view.told:
        key = view.space.key(told.arch)
        seen.setdefault(key, told)
        if told.value is None:
            continue
        better = walk.arch is None or told.value > walk.value
        if better or (key not in walk.around and _exhausted(walk, seen, running, view)):
            _move(walk, told, seen, view)
    return walk


def _exhausted(walk: Walk, seen: dict[Any, Told], running: set[Any], view: View) -> bool:
    """Whether every neighbour was tried, is running or is over the budget."""
    left = (arch for key, arch in walk.around.items() if key not in seen and key not in running)
    return not any(view.allowed(arch) for arch in left)


def _move(walk: Walk, to: Told, seen: dict[Any, Told], view: View) -> None:
    """Go to `to`, and on to the best neighbour already seen as long as there is a better one."""
    following: Told | None = to
    while following is not None and following.value is not None:
        walk.arch, walk.value = following.arch, following.value
        walk.around = {view.space.key(arch): arch for arch in view.space.neighbours(walk.arch)}
        following = None
        for told in filter(None, map(seen.get, walk.around)):
            if told.value is not None and told.value > (walk.value if following is None else following.value or 0.0):
                following = told
