import re

import pytest

from mobilevit_hf.evaluation import match_classes


@pytest.mark.parametrize(
    ("names", "classes", "expected"),
    [
        (["cat", "dog", "owl"], ["owl", "cat"], [2, 0]),
        (["Cat", "polar_bear"], ["polar bear", "cat"], [1, 0]),
        (["cat", "Cat"], ["Cat", "cat"], [1, 0]),
        (["tench, Tinca tinca", "goldfish, Carassius auratus"], ["goldfish", "tench"], [1, 0]),
        (["tench", "goldfish"], ["goldfish, Carassius auratus", "Tench, Tinca tinca"], [1, 0]),
        (["crane", "owl", "crane"], ["crane", "owl", "crane"], [0, 1, 2]),
        (["maillot", "maillot, tank suit"], ["maillot", "maillot, tank suit"], [0, 1]),
    ],
)
def test_classes_are_matched_by_name(names, classes, expected):
    assert match_classes(dict(enumerate(names)), classes) == (expected, [])


def test_classes_without_common_names_are_matched_by_index_with_a_note():
    indices, (note,) = match_classes({0: "LABEL_0", 1: "LABEL_1"}, ["cat", "dog"])
    assert indices == [0, 1]
    assert re.search("LABEL_0.*cat.*same order", note)


def test_one_name_in_a_hundred_may_be_spelled_differently():
    names = {i: f"class {i}" for i in range(200)}
    classes = [name if i not in (7, 150) else f"other {i}" for i, name in names.items()]
    indices, (note,) = match_classes(names, classes)
    assert indices == list(range(200))
    assert "other 7 = class 7, other 150 = class 150" in note
    with pytest.raises(ValueError, match="other 9"):
        match_classes(names, [*classes[:9], "other 9", *classes[10:]])


def test_ambiguous_name_is_unmatched():
    with pytest.raises(ValueError, match="crane"):
        match_classes({0: "crane", 1: "owl", 2: "crane"}, ["owl", "crane"])


@pytest.mark.parametrize("classes", [["cat", "cow", "pig"], ["cow", "pig"], ["cat", "dog", "pig"]])
def test_missing_classes_are_listed(classes):
    with pytest.raises(
        ValueError, match=r"got (2|1) of . dataset classes that the model lacks \(.*pig\).*among cat, dog, owl"
    ):
        match_classes({0: "cat", 1: "dog", 2: "owl"}, classes)
