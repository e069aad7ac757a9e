import pytest
from PIL import Image

from mobilevit_hf import samples
from mobilevit_hf.model_sources import builtin_models


def test_every_builtin_model_has_a_sample():
    assert sorted(samples.SAMPLES) == builtin_models()


@pytest.mark.parametrize("name", samples.SAMPLES)
def test_written_sample_is_a_reproducible_png(tmp_path, name):
    first, second = (samples.write_sample(name, tmp_path / folder) for folder in ("a", "b"))
    assert first == tmp_path / "a" / f"{name}.png"
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")


def test_smear_depends_on_the_seed():
    assert samples.draw_smear().size == (640, 480)
    assert samples.draw_smear(1).tobytes() != samples.draw_smear(2).tobytes()


def test_t_shirt_is_colored_on_white():
    assert samples.draw_t_shirt().getpixel((240, 240))[2] > 100  # blue
    assert samples.draw_t_shirt((200, 30, 30)).getpixel((240, 240))[0] > 100
    assert samples.draw_t_shirt().getpixel((5, 475)) == samples.PAPER
