import pytest

from befit.errors import BadData
from befit.propose.archive import Scored
from befit.propose.elites import pupils


def scored(number: int, accuracy: float, key: str = "") -> Scored:
    return Scored(number=number, key=key or str(number), text="", dataset="d", accuracy=accuracy)


def test_twenty_different_scores_are_two_to_a_level_and_the_best_fifth_are_elites() -> None:
    rows = [scored(number, number / 20) for number in range(20)]
    found = pupils(rows[::-1], share=0.2)
    assert [one.scored.number for one in found] == list(range(20))
    assert [one.level for one in found] == [place // 2 for place in range(20)]
    assert [one.scored.number for one in found if one.elite] == [16, 17, 18, 19]


def test_equal_scores_are_on_one_level_and_the_best_are_always_on_the_last() -> None:
    rows = [scored(0, 0.5), scored(1, 0.5), scored(2, 0.9), scored(3, 0.9)]
    found = pupils(rows, share=0.01)
    assert [one.level for one in found] == [4, 4, 9, 9]
    assert [one.elite for one in found] == [False, False, True, True]
    assert [(one.level, one.elite) for one in pupils(rows[:1], share=0.2)] == [(9, True)]


def test_a_network_counts_once() -> None:
    found = pupils([scored(0, 0.4, "same"), scored(3, 0.7), scored(1, 0.9, "same")], share=0.5)
    assert [(one.scored.number, one.scored.accuracy) for one in found] == [(0, 0.4), (3, 0.7)]
    assert pupils([], share=1.0) == []


@pytest.mark.parametrize("share", [0.0, 1.1, float("nan")])
def test_the_share_is_checked(share: float) -> None:
    with pytest.raises(BadData, match="share"):
        pupils([], share=share)
