from mobilevit_hf.data.masks import Mask
from mobilevit_hf.data.sequences import Samples
from mobilevit_hf.data.types import Dataset, Objects, Sample
from mobilevit_hf.reports import count_classes


def test_images_are_counted_by_the_names_of_the_model():
    """The dataset spells the classes in another way and order; a stream is not read."""
    splits = {
        "train": Samples(["a", "b", "c"], [None] * 3, [0, 1, 1]),
        "validation": [Sample("d", None, label=1)],
        "test": iter([Sample("e", None, label=1)]),
    }
    dataset = Dataset("image-classification", ("Dog", "cat"), splits, "imagefolder")
    assert count_classes(dataset, ["cat", "dog", "fish"]) == {
        "train": {"dog": 1, "cat": 2},
        "validation": {"dog": 0, "cat": 1},
    }


def test_objects_are_counted():
    objects = [Objects.from_lists([[0, 0, 1, 1]] * 3, [0, 1, 1]), Objects.from_lists([], [])]
    samples = [Sample(str(i), None, objects=item) for i, item in enumerate(objects)]
    dataset = Dataset("object-detection", ("cat", "dog"), {"train": samples}, "coco")
    assert count_classes(dataset, ["cat", "dog"]) == {"train": {"cat": 1, "dog": 2}}


def test_masks_are_not_read():
    samples = [Sample("a", None, mask=Mask("missing.png"))]
    dataset = Dataset("image-segmentation", ("cat", "dog"), {"train": samples}, "maskfolder")
    assert count_classes(dataset, ["cat", "dog"]) == {}
