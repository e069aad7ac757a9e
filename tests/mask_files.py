"""Write small datasets of images with masks to disk."""

import json

import numpy as np
from dataset_files import noise_image, write
from PIL import Image

SIDES = (24, 16)  # width and height of the images
VOC_COLORS = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]


def blocks(values, seed=0):
    """Return a mask (16, 24) of blocks of 8x8 pixels, in which each value occurs."""
    order = np.random.default_rng(seed).permutation(np.resize(values, 6)).reshape(2, 3)
    return np.kron(order, np.ones((8, 8), dtype=int)).astype(np.uint8)


def save_image(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise_image(seed, *SIDES).save(path)


def save_mask(path, values=(0, 1, 2), *, colors=None, palette=None, seed=0):
    """Save a mask as a gray image, in `colors` as RGB, or with a `palette`; return its values (16, 24)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = blocks(values, seed)
    if colors:
        image = Image.fromarray(np.array(colors, np.uint8)[mask])
    else:
        image = Image.fromarray(mask)
        if palette:
            image.putpalette([part for color in palette for part in color])
    image.save(path)
    return mask


def write_mask_dataset(root, names, **options):
    """Write an image and a mask for each pair of paths, and return the masks by the path of the image."""
    masks = {}
    for seed, (image, mask) in enumerate(names):
        save_image(root / image, seed)
        masks[image] = save_mask(root / mask, seed=seed, **options)
    return masks


def write_text_files(root, files):
    """Write files by their path, with text or JSON."""
    for name, content in files.items():
        write(root / name, content if isinstance(content, str) else json.dumps(content))
