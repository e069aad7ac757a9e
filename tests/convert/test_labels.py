"""Label names come from a file, a predefined set or the source."""

import pytest
import torch
import transformers
from formula import timm_model
from source_checkpoints import write_timm_dir

from mobilevit_hf.convert.conversion import convert_checkpoint


def test_labels_from_file(timm_file, tmp_path, output_dir):
    names = ["Corn Blight", "Ärger", "c", "d", "e"]
    (tmp_path / "labels.txt").write_text("\n".join(names) + "\n", encoding="utf-8-sig")
    report = convert_checkpoint(timm_file, output_dir, labels=str(tmp_path / "labels.txt"))
    assert not any("LABEL_" in note for note in report.notes)
    config = transformers.MobileViTConfig.from_pretrained(output_dir)
    assert config.id2label == dict(enumerate(names))
    assert config.label2id == {name: i for i, name in enumerate(names)}


def test_missing_labels_are_numbered(timm_file, output_dir):
    report = convert_checkpoint(timm_file, output_dir)
    assert any("LABEL_0 to LABEL_4" in note for note in report.notes)
    assert transformers.MobileViTConfig.from_pretrained(output_dir).id2label[4] == "LABEL_4"


def test_imagenet_labels_are_suggested_and_predefined(tmp_path, output_dir):
    torch.save(timm_model(num_classes=1000).state_dict(), tmp_path / "model.pth")
    assert any(
        "--labels imagenet-1k" in note
        for note in convert_checkpoint(tmp_path / "model.pth", output_dir.with_name("unnamed")).notes
    )
    convert_checkpoint(tmp_path / "model.pth", output_dir, labels="imagenet-1k")
    names = transformers.MobileViTConfig.from_pretrained(output_dir).id2label
    assert (len(names), names[0], names[207], names[999]) == (1000, "tench", "golden retriever", "toilet tissue")


def test_timm_label_names_and_labels_argument(tmp_path, output_dir):
    folder = write_timm_dir(tmp_path / "timm", label_names={str(i): f"n{i}" for i in (3, 1, 4, 0, 2)})
    convert_checkpoint(folder, output_dir)
    assert transformers.MobileViTConfig.from_pretrained(output_dir).id2label == {i: f"n{i}" for i in range(5)}
    convert_checkpoint(folder, output_dir.with_name("named"), labels=["v", "w", "x", "y", "z"])
    assert transformers.MobileViTConfig.from_pretrained(output_dir.with_name("named")).label2id["z"] == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\nc\n", "got 3 names, expected 5"),
        ("a\nb\nc\nd\ne\nf\n", "got 6 names, expected 5"),
        ("a\nb\n\nd\ne\n", "name 3 of 5 is empty"),
        ("a\nb\nc\nd\n  \n", "name 5 of 5 is empty"),
        ("a\nb\na\nb\ne\n", "a, b given more than once"),
        ("", "got no names"),
        (b"\xff\xfe\x00", "not UTF-8 text"),
    ],
)
def test_invalid_label_files_raise(timm_file, tmp_path, output_dir, text, message):
    (tmp_path / "labels.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(timm_file, output_dir, labels=tmp_path / "labels.txt")
    assert not output_dir.exists()


def test_invalid_labels_raise(timm_file, tmp_path, output_dir):
    with pytest.raises(FileNotFoundError, match=r"labels: no file .*imagenet-2k"):
        convert_checkpoint(timm_file, output_dir, labels="imagenet-2k")
    with pytest.raises(ValueError, match="got 1000 names, expected 5"):
        convert_checkpoint(timm_file, output_dir, labels="imagenet-1k")
    with pytest.raises(ValueError, match="got 3, expected text"):
        convert_checkpoint(timm_file, output_dir, labels=["a", "b", 3, "d", "e"])
    torch.save(timm_model(num_classes=0).state_dict(), tmp_path / "backbone.pth")
    with pytest.raises(ValueError, match="2 names for a backbone without a classifier"):
        convert_checkpoint(tmp_path / "backbone.pth", output_dir, labels=["a", "b"])
