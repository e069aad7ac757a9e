from collections.abc import Sequence

import pytest

from mobilevit_hf.data.types import Dataset, Problem, Sample
from mobilevit_hf.evaluation.selection import check_problems, limit_samples, select_split, split_problems


class CountingSequence(Sequence):
    """Samples by name, which are created on access and recorded in `created`."""

    def __init__(self, names, created):
        self.names, self.created = names, created

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        self.created.append(self.names[index])
        return Sample(self.names[index], None, label=0)


def make_dataset(**splits):
    return Dataset("image-classification", ("cat",), splits, "imagefolder")


def make_samples(names):
    return [Sample(name, None, label=0) for name in names]


@pytest.mark.parametrize(
    ("splits", "expected"), [(("train", "test", "validation"), "validation"), (("train", "test"), "test")]
)
def test_default_split(splits, expected):
    dataset = make_dataset(**{name: make_samples(name) for name in splits})
    assert select_split(dataset) == (expected, dataset.splits[expected])


def test_missing_split_is_rejected():
    with pytest.raises(ValueError, match=r"split: got exam, expected one of train, all"):
        select_split(make_dataset(train=[]), "exam")


def test_all_splits_together_create_samples_on_access():
    created = []
    dataset = make_dataset(train=CountingSequence("abc", created), test=CountingSequence("de", created))
    name, samples = select_split(dataset, "all")
    assert (name, len(samples), created) == ("all", 5, [])
    assert "".join(sample.name for sample in samples) == "abcde"
    assert [samples[index].name for index in (-1, 2, 3)] == ["e", "c", "d"]


def test_all_splits_of_a_stream_are_chained():
    _, samples = select_split(make_dataset(train=iter(make_samples("ab")), test=make_samples("c")), "all")
    assert [sample.name for sample in samples] == ["a", "b", "c"]


def test_problems_of_other_splits_are_excluded():
    dataset = make_dataset(train=make_samples("ab"), test=make_samples("c"))
    dataset.problems = [Problem(name, "box without area", "0 pixels wide") for name in "acx"]
    assert [problem.name for problem in split_problems(dataset, "test")] == ["c", "x"]
    assert [problem.name for problem in split_problems(dataset, "all")] == ["a", "c", "x"]


def test_too_many_invalid_samples_are_an_error():
    problems = [Problem("x", "unreadable image", "not an image"), Problem("y", "empty label file", "no boxes")]
    check_problems(problems, make_samples("abc"), max_bad=0.25)
    check_problems(problems, iter(make_samples("abc")), max_bad=0)
    with pytest.raises(ValueError, match=r"max_bad: got 1 of 4 samples .* x: unreadable image, not an image"):
        check_problems(problems, make_samples("abc"), max_bad=0.24)


@pytest.mark.parametrize(("limit", "expected"), [(None, "abcdef"), (3, "ace"), (10, "abcdef")])
def test_limit_selects_evenly_spaced_samples(limit, expected):
    assert "".join(sample.name for sample in limit_samples(make_samples("abcdef"), limit)) == expected


def test_limit_of_a_stream_selects_the_first_samples():
    assert [sample.name for sample in limit_samples(iter(make_samples("abcd")), 2)] == ["a", "b"]
