"""What the commands say at their end."""

import pytest

from training.evaluate.promotion import Paired, plainly
from training.summary import few, mistakes


@pytest.mark.parametrize(("count", "said"), [(0, False), (8, True), (99, True), (100, False)])
def test_few_images_are_said_to_be_few(count, said):
    assert bool(few(count, "test")) == said


def test_few_images_come_with_what_they_can_mean():
    assert few(10, "test") == [
        "10 test images are few: 90% of them right may mean anything from 60% to 98%"
    ]


def test_only_the_commonest_mistakes_are_told():
    pairs = [("ant", "bee", 1200), ("bee", "ant", 9), ("bee", "fly", 2), ("fly", "ant", 1)]
    [line] = mistakes(pairs)
    told = "ant taken for bee (1,200), bee taken for ant (9), bee taken for fly (2)"
    assert line == f"commonest mistakes: {told}"
    assert mistakes([]) == []


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ((148, 0, 0, 5), "so few images leave a loss of up to 2.4% possible, and 1.0% is allowed"),
        ((1900, 20, 50, 30), "that is no chance"),
        ((1975, 10, 15, 0), "a loss of more than 1.0% is ruled out"),
    ],
)
def test_why_it_was_promoted_or_not_is_one_plain_sentence(counts, words):
    both, new, old, neither = counts
    paired = Paired(both_right=both, only_new=new, only_old=old, both_wrong=neither)
    said = plainly(paired, old_version=3)
    assert said.startswith(
        f"of the same {sum(counts):,} test images {new} are right only now, and {old} were right"
        " only in version 3; "
    )
    assert said.endswith(words)
