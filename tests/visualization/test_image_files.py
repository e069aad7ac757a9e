import numpy as np
import pytest
from PIL import Image

from mobilevit_hf.visualization import save_image


@pytest.mark.parametrize(
    ("name", "file", "kind"),
    [
        ("a.jpg", "a.jpg", "JPEG"),
        ("a.JPEG", "a.JPEG", "JPEG"),
        ("a.png", "a.png", "PNG"),
        ("a.b.webp", "a.b.png", "PNG"),
        ("a", "a.png", "PNG"),
        ("", "image.png", "PNG"),
    ],
)
def test_saved_image_keeps_its_name(image, tmp_path, name, file, kind):
    path = save_image(image, tmp_path, name)
    assert path == tmp_path / file
    with Image.open(path) as saved:
        assert saved.format == kind
        assert saved.size == image.size
        difference = np.abs(np.asarray(saved).astype(int) - np.asarray(image))
    assert difference.max() == 0 if kind == "PNG" else difference.mean() < 2
    assert list(tmp_path.iterdir()) == [path]


def test_existing_file_is_never_overwritten(image, tmp_path):
    (tmp_path / "a.jpg").write_text("existing")
    paths = [save_image(image, tmp_path, "a.jpg") for _ in range(2)]
    assert [path.name for path in paths] == ["a-2.jpg", "a-3.jpg"]
    assert (tmp_path / "a.jpg").read_text() == "existing"


def test_failed_save_leaves_no_file(image, tmp_path, monkeypatch):
    def fail(self, file, *args, **options):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_image(image, tmp_path, "a.jpg")
    assert list(tmp_path.iterdir()) == []


def test_long_name_is_truncated_between_characters(image, tmp_path):
    path = save_image(image, tmp_path, "猫" * 80 + ".png")
    assert path.name == "猫" * 66 + ".png"  # three bytes each, of 200
