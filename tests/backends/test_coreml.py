"""Exported Core ML packages."""

import pytest

from mobilevit_hf.records import read_export_records


@pytest.mark.slow
def test_core_ml_export_has_named_outputs_and_is_not_verified(model_dirs, tmp_path, mobilevit):
    coremltools = pytest.importorskip("coremltools")
    code, stdout, _ = mobilevit("export", model_dirs["object-detection"], tmp_path / "export", "--to", "coreml")
    assert code == 0
    assert "not verified" in stdout
    (record,) = read_export_records(tmp_path / "export" / "export.json")
    assert record.verified is False
    assert record.max_error is None
    spec = coremltools.models.MLModel(str(tmp_path / "export" / record.file), skip_model_load=True).get_spec()
    assert [value.name for value in spec.description.input] == ["pixel_values"]
    assert [value.name for value in spec.description.output] == ["logits", "pred_boxes"]
