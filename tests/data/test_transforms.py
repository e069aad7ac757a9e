"""Transforms: boxes stay on their objects, and training inputs equal the processor's."""

from statistics import mean

import numpy as np
import pytest
import torch
from dataset_files import jpeg_bytes
from PIL import Image
from torchvision import tv_tensors
from torchvision.ops import box_convert, box_iou
from torchvision.transforms import v2
from transformers import AutoImageProcessor, BitImageProcessor, MobileViTImageProcessor, ViTImageProcessorPil

from mobilevit_hf import MobileViTSSDLiteImageProcessor
from mobilevit_hf.data.images import LazyImage, Region, UnreadableImageError
from mobilevit_hf.data.masks import Mask
from mobilevit_hf.data.transforms import (
    SegmentationTransform,
    crop_objects,
    make_mix,
    make_transform,
    random_iou_crop,
    random_resized_crop,
)
from mobilevit_hf.data.types import Objects, Sample
from mobilevit_hf.modeling.matcher_ssdlite import check_labels

CROPS = {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}}
SQUARE = {"size": {"height": 64, "width": 64}}
PROCESSORS = {
    "stock BGR": MobileViTImageProcessor(**CROPS),
    "stock RGB": MobileViTImageProcessor(**CROPS, do_flip_channel_order=False, resample=Image.Resampling.BILINEAR),
    "timm": BitImageProcessor(**CROPS, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4]),
    "detector RGB": MobileViTSSDLiteImageProcessor(**SQUARE),
    "detector BGR": MobileViTSSDLiteImageProcessor(**SQUARE, do_flip_channel_order=True),
    "detector normalized": MobileViTSSDLiteImageProcessor(
        **SQUARE, do_normalize=True, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7]
    ),
}
NO_AUGMENTATION = {
    "image-classification": {"crop_scale": (1, 1), "crop_ratio": (1, 1), "horizontal_flip": 0},
    "object-detection": {"color_jitter": 0, "zoom_out": 0, "crop": 0, "horizontal_flip": 0},
}
COLORS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255], [255, 0, 255]])


def task_of(name):
    return "object-detection" if name.startswith("detector") else "image-classification"


def make_sample(task):
    objects = Objects.from_lists([[10, 20, 60, 70]], [1]) if task == "object-detection" else None
    return Sample("a", None, label=None if objects else 1, objects=objects)


@pytest.mark.parametrize("name", PROCESSORS)
def test_evaluation_equals_the_saved_processor(name, image, tmp_path):
    PROCESSORS[name].save_pretrained(tmp_path)
    expected = AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"][0]
    evaluated = make_transform(task_of(name), PROCESSORS[name], training=False)(image, make_sample(task_of(name)))
    torch.testing.assert_close(evaluated["pixel_values"], expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", PROCESSORS)
def test_training_without_augmentation_equals_the_processor(name, image):
    task, square = task_of(name), image.resize((64, 64))
    expected = PROCESSORS[name](
        square, return_tensors="pt", **({"do_resize": False} if task != "object-detection" else {})
    )
    trained = make_transform(task, PROCESSORS[name], training=True, **NO_AUGMENTATION[task])(square, make_sample(task))
    torch.testing.assert_close(trained["pixel_values"], expected["pixel_values"][0], rtol=0, atol=1e-3)
    assert trained["pixel_values"].is_contiguous()


@pytest.mark.parametrize("name", ["detector BGR", "stock BGR", "timm"])
def test_training_resizes_like_the_processor(name, image):
    square = image.resize((150, 150))
    processor = PROCESSORS[name]
    small = {"size": {"height": 64, "width": 64}} | ({} if "detector" in name else {"do_center_crop": False})
    expected = processor(square, return_tensors="pt", **small)["pixel_values"][0]
    task = task_of(name)
    trained = make_transform(task, processor, training=True, **NO_AUGMENTATION[task])(square, make_sample(task))
    torch.testing.assert_close(trained["pixel_values"], expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", PROCESSORS)
def test_size_argument_overrides_the_processor(name, image):
    transform = make_transform(task_of(name), PROCESSORS[name], training=True)
    assert transform(image, make_sample(task_of(name)))["pixel_values"].shape == (3, 64, 64)
    assert transform(image, make_sample(task_of(name)), (96, 32))["pixel_values"].shape == (3, 96, 32)


def draw_rectangles(generator, width=240, height=180):
    """Draw disjoint rectangles in the colors of their labels on black; return image, objects and crowd flags."""
    boxes, labels, colors = [], [], torch.randperm(len(COLORS), generator=generator).tolist()
    pixels = np.zeros((height, width, 3), np.uint8)
    for row in range(2):
        for column in range(3):
            if torch.rand((), generator=generator) < 0.3:
                continue
            sides = torch.randint(16, 70, (2,), generator=generator)
            x, y = column * 80 + int(torch.randint(1, 10, (), generator=generator)), row * 90 + 5
            box = (x, y, min(x + int(sides[0]), column * 80 + 79), y + int(sides[1]))
            label = colors.pop()
            pixels[box[1] : box[3], box[0] : box[2]] = COLORS[label]
            boxes.append(box)
            labels.append(label)
    crowd = [int(i % 3 == 2) for i in range(len(labels))]
    areas = [(b[2] - b[0]) * (b[3] - b[1]) * (0.5 + 0.1 * label) for b, label in zip(boxes, labels, strict=True)]
    return Image.fromarray(pixels), Objects.from_lists(boxes, labels, crowd, areas), crowd


@pytest.mark.parametrize("file", ["decoded", "jpeg"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"zoom_out": 1, "crop": 0},
        {"zoom_out": 0, "crop": 1},
        {"zoom_out": 0, "crop": 0, "horizontal_flip": 1},
        {"zoom_out": 0, "crop": 0, "vertical_flip": 1, "horizontal_flip": 0},
        {"zoom_out": 1, "vertical_flip": 0.5},
    ],
    ids=str,
)
def test_boxes_follow_their_objects(options, file):
    """Each box encloses the visible pixels of its label's color."""
    generator = torch.Generator().manual_seed(0)
    processor = MobileViTSSDLiteImageProcessor(size={"height": 120, "width": 120})
    transform = make_transform("object-detection", processor, training=True, **{"color_jitter": 0, **options})
    torch.manual_seed(1)
    num_boxes = 0
    for number in range(40):
        image, objects, crowd = draw_rectangles(generator)
        source = image
        if file == "jpeg":
            source = jpeg_bytes(image, quality=95, subsampling=0)
        size = [(120, 120), (60, 100)][number % 2]
        prepared = transform(LazyImage(source), Sample("a", None, objects=objects), size)
        labels = prepared["labels"]
        check_labels([labels], 1, len(COLORS))
        assert labels["orig_size"].tolist() == [180, 240]
        assert len({len(labels[name]) for name in ("boxes", "class_labels", "iscrowd", "area")}) == 1
        assert int(labels["iscrowd"].sum()) <= sum(crowd)
        colors = prepared["pixel_values"] * 255
        boxes = box_convert(labels["boxes"], "cxcywh", "xyxy") * torch.tensor([size[1], size[0]] * 2)
        for box, label, area in zip(boxes, labels["class_labels"], labels["area"], strict=True):
            left, top, right, bottom = box.tolist()
            if min(right - left, bottom - top) < 4:
                continue
            rows, columns = torch.where((colors - COLORS[label][:, None, None]).abs().amax(dim=0) < 100)
            extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert list(map(int, extent)) == pytest.approx([left, top, right, bottom], abs=1.6)
            fraction = area / ((right - left) * (bottom - top))
            assert fraction.item() == pytest.approx(0.5 + 0.1 * label.item(), rel=0.02)  # as before the crop
            num_boxes += 1
    assert num_boxes > 60


def test_crop_objects_clips_and_drops_boxes():
    objects = Objects.from_lists(
        [[0, 0, 10, 10], [8, 8, 30, 30], [40, 40, 50, 60], [19, 0, 25, 30], [20, 20, 20.4, 40]],
        [0, 1, 2, 3, 4],
        iscrowd=[0, 1, 0, 0, 0],
        areas=[50, 242, 10, 10, 10],
    )
    kept = crop_objects(objects, Region(10, 10, 20, 20), (40, 10))  # x * 0.5, y * 2
    # The first and third box are outside, the center of the fourth is inside; the last is thinner than a pixel.
    assert kept.labels.tolist() == [1, 3]
    assert kept.iscrowd.tolist() == [1, 0]
    assert kept.boxes.tolist() == [[0, 0, 10, 40], [4.5, 0, 7.5, 40]]
    torch.testing.assert_close(kept.areas, torch.tensor([242 * 400 / 484, 10 * 120 / 180]))


def test_image_without_objects():
    transform = make_transform("object-detection", PROCESSORS["detector RGB"], training=True)
    sample = Sample("a", None, objects=Objects.from_lists([], []))
    for _ in range(10):
        labels = transform(Image.new("RGB", (50, 40)), sample)["labels"]
        assert labels["boxes"].shape == (0, 4)
        check_labels([labels], 1, 1)


@pytest.mark.parametrize("box", [[0, 0, 3, 3], [197, 97, 200, 100], [0, 0, 200, 100]])
def test_boxes_at_the_border(box):
    transform = make_transform("object-detection", PROCESSORS["detector RGB"], training=True)
    sample = Sample("a", None, objects=Objects.from_lists([box], [0]))
    for seed in range(40):
        torch.manual_seed(seed)
        check_labels([transform(Image.new("RGB", (200, 100)), sample)["labels"]], 1, 1)


def test_random_iou_crop_matches_torchvision():
    boxes = torch.tensor([[20.0, 30, 90, 120], [100, 10, 180, 60], [150, 90, 155, 100]])
    canvas = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(140, 200))
    torch.manual_seed(0)
    ours = [random_iou_crop(Region(0, 0, 140, 200), boxes) for _ in range(600)]
    crop = v2.RandomIoUCrop()
    reference = []
    for _ in range(600):
        params = crop.make_params([canvas])
        reference.append(Region(*(params[key] for key in Region._fields)) if params else Region(0, 0, 140, 200))
    statistics = {
        "whole": (lambda r: r == (0, 0, 140, 200), 0.06),
        "area": (lambda r: r.height * r.width / 28000, 0.05),
        "ratio": (lambda r: r.width / r.height, 0.1),
        "top": (lambda r: r.top / 140, 0.03),
        "left": (lambda r: r.left / 200, 0.03),
        "best overlap": (lambda r: max_overlap(r, boxes), 0.04),
    }
    for name, (value, tolerance) in statistics.items():
        assert mean(map(value, ours)) == pytest.approx(mean(map(value, reference)), abs=tolerance), name


def max_overlap(region, boxes):
    corners = [region.left, region.top, region.left + region.width, region.top + region.height]
    return box_iou(torch.tensor([corners], dtype=torch.float32), boxes).max().item()


@pytest.mark.parametrize("size", [(240, 320), (50, 400), (7, 5)], ids=str)
def test_random_resized_crop_matches_torchvision(size):
    """Quartiles of position and size over many samples are equal."""
    canvas = tv_tensors.BoundingBoxes(torch.empty(0, 4), format="XYXY", canvas_size=size)
    crop = v2.RandomResizedCrop(1)

    def quartiles(sample_region):
        torch.manual_seed(0)
        regions = torch.tensor([sample_region() for _ in range(3000)], dtype=torch.float64)
        tops, lefts, heights, widths = regions.unbind(1)
        assert (tops >= 0).all()
        assert (lefts >= 0).all()
        assert (tops + heights <= size[0]).all()
        assert (lefts + widths <= size[1]).all()
        return torch.quantile(regions / torch.tensor([*size, *size]), torch.tensor([0.25, 0.5, 0.75]).double(), dim=0)

    def sample_reference():
        params = crop.make_params([canvas])
        return [params[name] for name in ("top", "left", "height", "width")]

    reference = quartiles(sample_reference)
    ours = quartiles(lambda: list(random_resized_crop(*size, (0.08, 1.0), (3 / 4, 4 / 3))))
    torch.testing.assert_close(ours, reference, atol=0.03, rtol=0)


def test_classification_crops_and_flips():
    """Measured on an image whose red value grows along x and green along y."""
    x, y = np.meshgrid(np.arange(200), np.arange(100))
    image = Image.fromarray(np.stack([x, y, 0 * x], axis=2).astype(np.uint8))
    processor = MobileViTImageProcessor(**CROPS, do_flip_channel_order=False)
    transform = make_transform("image-classification", processor, training=True, vertical_flip=0.5)
    torch.manual_seed(0)
    areas, ratios, horizontal_flips, vertical_flips = [], [], 0, 0
    for _ in range(300):
        prepared = transform(image, Sample("a", None, label=3))
        assert prepared["labels"] == 3
        red, green = prepared["pixel_values"][:2] * 255
        width, height = (red[:, -1] - red[:, 0]).mean() * 64 / 63, (green[-1] - green[0]).mean() * 64 / 63
        horizontal_flips += width.item() < 0
        vertical_flips += height.item() < 0
        areas.append(abs(width * height).item() / 20000)
        ratios.append(abs(width / height).item())
    assert 0.06 < min(areas) < 0.15
    assert 0.6 < max(areas) < 1.02
    assert 0.7 < min(ratios) < 0.85
    assert 1.2 < max(ratios) < 1.42
    assert 110 < horizontal_flips < 190
    assert 110 < vertical_flips < 190


def test_optional_classification_augmentation(image):
    sample, processor = Sample("a", None, label=0), PROCESSORS["stock RGB"]
    fixed = NO_AUGMENTATION["image-classification"]
    original = make_transform("image-classification", processor, training=True, **fixed)(image, sample)["pixel_values"]
    torch.manual_seed(0)
    for options in ({"rand_augment": 9}, {"random_erasing": 1.0}, {"color_jitter": 1.0}):
        transform = make_transform("image-classification", processor, training=True, **fixed, **options)
        results = torch.stack([transform(image, sample)["pixel_values"] for _ in range(8)])
        assert results.min() >= 0
        assert results.max() <= 1
        changed = (results - original).abs().amax(dim=1) > 0.02
        assert changed.any()
        if "random_erasing" in options:
            assert changed.float().mean() < 0.4


def test_mix_weights_labels_like_pixels():
    images = torch.zeros(6, 3, 32, 32)
    images[torch.arange(6), 0] = torch.arange(6.0)[:, None, None]  # pixel values equal the class
    classes = torch.arange(6)
    torch.manual_seed(0)
    for options in ({"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}):
        for _ in range(10):
            mixed, soft = make_mix(6, **options)(images.clone(), classes)
            torch.testing.assert_close(soft.sum(dim=1), torch.ones(6))
            expected = (soft * classes).sum(dim=1)  # mean pixel value, for any way of mixing
            torch.testing.assert_close(mixed[:, 0].mean(dim=(1, 2)), expected, rtol=0, atol=1e-3)
    assert make_mix(6) is None


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("image-classification", {"horizontal_flip": 1.5}, "horizontal_flip: got 1.5"),
        ("image-classification", {"crop_scale": (0.5, 0.1)}, "crop_scale: got"),
        ("image-classification", {"crop_ratio": (0, 1)}, "crop_ratio: got"),
        ("image-classification", {"rand_augment": 31}, "rand_augment: got 31"),
        ("image-classification", {"random_erasing": -1}, "random_erasing: got -1"),
        ("object-detection", {"zoom_out": 2}, "zoom_out: got 2"),
    ],
)
def test_invalid_options_raise(task, options, message):
    with pytest.raises(ValueError, match=message):
        make_transform(task, PROCESSORS["detector RGB"], training=True, **options)


def test_unsupported_processor_raises():
    with pytest.raises(ValueError, match="expected one with the torchvision backend"):
        make_transform("image-classification", ViTImageProcessorPil(), training=True)
    with pytest.raises(ValueError, match="mixup: got -1"):
        make_mix(3, mixup=-1)


def segmentation_processor(is_stretched):
    if is_stretched:
        size = {"size": {"height": 64, "width": 96}, "do_center_crop": False}
    else:
        size = {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 96}}
    return MobileViTImageProcessor(**size, do_flip_channel_order=False, resample=Image.Resampling.NEAREST)


MASK_COLORS = np.array([[20, 30, 40], [200, 0, 0], [0, 220, 10], [60, 60, 250]], np.uint8)


def make_checker(height=120, width=200, seed=0):
    """Return an image whose colors are those of the classes of its mask (H, W)."""
    cells = np.random.default_rng(seed).integers(0, 4, (height // 20, width // 20))
    mask = np.kron(cells, np.ones((20, 20), dtype=int)).astype(np.uint8)
    return Image.fromarray(MASK_COLORS[mask]), Sample("a", None, mask=Mask(mask))


def read_labels(pixel_values):
    """Return the class by the nearest color of each pixel, (H, W)."""
    pixels = (pixel_values * 255).permute(1, 2, 0).numpy()
    return np.abs(pixels[:, :, None] - MASK_COLORS.astype(float)).sum(axis=-1).argmin(axis=-1)


@pytest.mark.parametrize("is_stretched", [True, False])
def test_masks_follow_their_image(is_stretched):
    image, sample = make_checker()
    processor = segmentation_processor(is_stretched)
    transform = make_transform("image-segmentation", processor, training=True, color_jitter=0, vertical_flip=0.5)
    ignored, agreement = [], []
    for seed in range(100):
        torch.manual_seed(seed)
        inputs = transform(image, sample)
        labels = inputs["labels"].numpy()
        assert (labels.shape, inputs["labels"].dtype) == ((64, 96), torch.int64)
        agreement.append((read_labels(inputs["pixel_values"]) == labels)[labels != 255].mean())
        ignored.append((labels == 255).mean())
    assert min(agreement) > 0.9  # pixels of regions that exceed the image are rounded
    assert mean(agreement) > 0.99
    assert 0.02 < mean(ignored) < 0.3  # only at scales below 1


def test_masks_are_cropped_flipped_and_resized_as_by_torchvision(monkeypatch):
    image, sample = make_checker()
    transform = SegmentationTransform(segmentation_processor(True), color_jitter=0, scale_jitter=(1.2, 2))
    for seed, dims in enumerate(([], [-1], [-2], [-1, -2]) * 3):
        torch.manual_seed(seed)
        region = transform._choose_region(120, 200, (64, 96))
        monkeypatch.setattr(transform, "_choose_region", lambda *_, region=region: region)
        monkeypatch.setattr(transform, "_choose_flips", lambda dims=dims: dims)
        inputs = transform(image, sample)
        assert 0 <= region.top <= 120 - region.height
        assert 0 <= region.left <= 200 - region.width
        pair = [
            v2.functional.crop(value, *region)
            for value in (tv_tensors.Image(image), tv_tensors.Mask(sample.mask.read()[None]))
        ]
        # The nearest of the centers of pixels, as transformers' processors; torchvision's masks use their corners.
        mode = v2.InterpolationMode.NEAREST_EXACT
        pair = [type(value)(v2.functional.resize_image(value, [64, 96], interpolation=mode)) for value in pair]
        flips = [v2.RandomHorizontalFlip(1)] * (-1 in dims) + [v2.RandomVerticalFlip(1)] * (-2 in dims)
        pixels, mask = v2.Compose([v2.Identity(), *flips])(*pair)
        assert (inputs["labels"] == mask[0]).all()
        torch.testing.assert_close(inputs["pixel_values"], pixels / 255, rtol=0, atol=1e-3)
        monkeypatch.undo()


@pytest.mark.parametrize("is_stretched", [True, False])
def test_scale_1_shows_what_the_processor_shows(is_stretched):
    image, sample = make_checker()
    processor = segmentation_processor(is_stretched)
    options = {"scale_jitter": (1, 1), "ratio_jitter": (1, 1), "color_jitter": 0, "horizontal_flip": 0}
    trained = make_transform("image-segmentation", processor, training=True, **options)(image, sample)
    evaluated = make_transform("image-segmentation", processor, training=False)(image, sample)
    assert trained["labels"].shape == evaluated["labels"].shape
    if is_stretched:
        assert (trained["labels"] == evaluated["labels"]).all()


def test_evaluation_resizes_masks_as_images():
    image, sample = make_checker()
    for is_stretched in (True, False):
        inputs = make_transform("image-segmentation", segmentation_processor(is_stretched), training=False)(
            image, sample
        )
        assert inputs["labels"].dtype == torch.int64
        np.testing.assert_array_equal(read_labels(inputs["pixel_values"]), inputs["labels"])


def test_padding_of_the_processor_is_ignored():
    image, sample = make_checker(40, 40)
    processor = MobileViTImageProcessor(do_resize=False, crop_size={"height": 60, "width": 60})
    labels = make_transform("image-segmentation", processor, training=False)(image, sample)["labels"]
    np.testing.assert_array_equal(labels[10:50, 10:50], sample.mask.read())
    assert (labels != 255).sum() == 40 * 40


def test_ignored_pixels_stay_ignored():
    image, sample = make_checker()
    mask = sample.mask.read().copy()
    mask[:, :100] = 255
    sample = Sample("a", None, mask=Mask(mask))
    processor = segmentation_processor(True)
    options = {"scale_jitter": (1, 1), "ratio_jitter": (1, 1), "horizontal_flip": 0}
    for training in (True, False):
        transform = make_transform("image-segmentation", processor, training=training, **(options if training else {}))
        labels = transform(image, sample)["labels"]
        assert (labels[:, :48] == 255).all()
        assert (labels[:, 48:] < 4).all()


def test_a_mask_of_another_size_raises():
    image, _ = make_checker()
    sample = Sample("a", None, mask=Mask(np.zeros((60, 100), np.uint8)))
    for training in (True, False):
        transform = make_transform("image-segmentation", segmentation_processor(True), training=training)
        with pytest.raises(UnreadableImageError, match="mask of 100x60 pixels, image of 200x120"):
            transform(image, sample)


@pytest.mark.parametrize("options", [{"scale_jitter": (0, 1)}, {"ratio_jitter": (2, 1)}])
def test_invalid_ranges_of_segmentation_raise(options):
    with pytest.raises(ValueError, match="expected a minimum and a maximum above 0"):
        SegmentationTransform(segmentation_processor(True), **options)


def test_a_reduced_jpeg_stays_aligned_with_its_mask():
    _, sample = make_checker(600, 1000)
    mask = np.kron(sample.mask.read()[::20, ::20][:6, :10], np.ones((100, 100), dtype=int)).astype(np.uint8)
    file = jpeg_bytes(Image.fromarray(MASK_COLORS[mask]), quality=95, subsampling=0)
    transform = SegmentationTransform(segmentation_processor(True), color_jitter=0, scale_jitter=(0.8, 1.2))
    for seed in range(10):
        torch.manual_seed(seed)
        inputs = transform(LazyImage(file), Sample("a", None, mask=Mask(mask)))
        labels = inputs["labels"].numpy()
        assert (read_labels(inputs["pixel_values"]) == labels)[labels != 255].mean() > 0.9
