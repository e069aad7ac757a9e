import json

from mobilevit_hf.model_sources import builtin_models


def test_builtin_and_official_models_are_listed(mobilevit):
    code, out, _ = mobilevit("models", "--json")
    assert code == 0
    models = {model["name"]: model for model in json.loads(out)}
    assert {name for name, model in models.items() if model["builtin"]} == set(builtin_models())
    assert models["apple/mobilevit-small"]["parameters"] == 5_578_632
    assert models["garments"]["license"] == "mit"
    assert "test" in models["garments"]["result"]
    code, out, _ = mobilevit("models")
    assert code == 0
    assert "garments" in out
    assert "78.4%" in out
