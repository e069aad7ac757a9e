"""Which class of a model a dataset means."""

from collections.abc import Mapping, Sequence

# Two lists of class names are one list in two spellings if no larger share of their places differs.
MAX_RENAMED = 0.01


def match_classes(id2label: Mapping[int, str], classes: Sequence[str]) -> tuple[list[int], list[str]]:
    """Which of a model's classes each class of a dataset is, by name.

    Names are the same if they are equal; else if they differ in case, blanks and underscores only; else if what is
    before the first comma is the same, as in "tench" and "tench, Tinca tinca". Of several classes with one name it is
    the one at the same place. Lists of equal length are matched by place if no name agrees (`LABEL_0`), or where one
    name in a hundred at most does not (another spelling).

    Args:
        id2label: The model's names by class.
        classes: The dataset's, in the order of its labels.

    Returns:
        The model's class for each, and notes for the user.

    Raises:
        ValueError: If the model does not know some of the classes.
    """
    names = [name for _, name in sorted(id2label.items())]
    found = [_find_class(names, name, place) for place, name in enumerate(classes)]
    unknown = [place for place, index in enumerate(found) if index is None]
    in_place = sum(place == index for place, index in enumerate(found))
    if not unknown:
        return found, []
    if len(names) == len(classes) and len(unknown) == len(classes):
        return list(range(len(classes))), [
            f"The model calls its {len(names)} classes {_listing(names)}, the dataset {_listing(classes)}: no name "
            "agrees, so they are taken to be in the same order."
        ]
    if len(names) == len(classes) and len(classes) - in_place <= MAX_RENAMED * len(classes):
        pairs = _listing([f"{classes[place]} = {names[place]}" for place in unknown])
        return [place if index is None else index for place, index in enumerate(found)], [
            f"Matched by their place in the list, as all other names agree: {pairs}."
        ]
    raise ValueError(
        f"The model does not know {len(unknown)} of the dataset's {len(classes)} classes: "
        f"{_listing([classes[place] for place in unknown])}. It knows {_listing(names)}. Give the dataset's classes "
        "the model's names, or take a model trained on them."
    )


def _find_class(names: Sequence[str], name: str, place: int) -> int | None:
    """The place in `names` of a name, at best the given place; None if it is not there, or several times elsewhere."""
    for read in (str, _fold_name, lambda name: _fold_name(name.split(",")[0])):
        same = [index for index, other in enumerate(names) if read(other) == read(name)]
        if place in same or len(same) == 1:
            return place if place in same else same[0]
    return None


def _fold_name(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def _listing(names: Sequence[str], limit: int = 10) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
