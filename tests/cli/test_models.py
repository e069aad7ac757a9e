import json

from mobilevit_hf.model_sources import builtin_models


def test_builtin_and_official_models_are_listed(mobilevit):
    code, out, _ = mobilevit("models", "--json")
    assert code == 0
    models = {model["name"]: model for model in json.loads(out)}
    assert {name for name, model in models.items() if model["builtin"]} == set(builtin_models())
    assert models["apple/mobilevit-small"]["parameters"] == 5_578_632
    segmenters = {name for name, model in models.items() if model["task"] == "image-segmentation"}
    assert segmenters == {f"apple/deeplabv3-mobilevit-{size}" for size in ("xx-small", "x-small", "small")}
    assert "79.1%" in models["apple/deeplabv3-mobilevit-small"]["result"]
    assert models["garments"]["license"] == "mit"
    assert "test" in models["garments"]["result"]
    code, out, _ = mobilevit("models")
    assert code == 0
    assert "garments" in out
    assert "78.4%" in out
    assert "mobilevit predict photo.jpg --model NAME" in out
