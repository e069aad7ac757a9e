"""`mobilevit convert`: other checkpoints become models of this package."""

import json

import pytest
import torch
import transformers

import mobilevit_hf
from mobilevit_hf.data.images import load_image


def test_converted_model_has_the_given_labels_and_channel_order(mobilevit, classifier_dir, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\nc\nd\n")
    weights = classifier_dir / "model.safetensors"
    code, out, err = mobilevit("convert", weights, tmp_path / "out", "--labels", labels, "--channel-order", "rgb")
    assert code == 0
    assert "4 labels, RGB" in out
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").id2label == dict(enumerate("abcd"))
    assert not transformers.AutoImageProcessor.from_pretrained(tmp_path / "out").do_flip_channel_order
    labels.write_text("a\nb\n")
    code, _, err = mobilevit("convert", weights, tmp_path / "out2", "--labels", labels)
    assert code == 2
    assert "2" in err
    assert "4" in err
    assert not (tmp_path / "out2").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["~unknown-user/x", "OUT"], "no such file or directory"),
        (["WEIGHTS", "OUT", "--labels", "~unknown-user/x"], "no file ~unknown-user/x"),
    ],
    ids=["source", "labels"],
)
def test_home_folder_of_an_unknown_user_is_an_error(mobilevit, detector_dir, tmp_path, arguments, expected):
    paths = {"WEIGHTS": detector_dir / "model.safetensors", "OUT": tmp_path / "out"}
    code, out, err = mobilevit("convert", *(str(paths.get(word, word)) for word in arguments))
    assert (code, out) == (2, "")
    assert expected in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_converted_timm_model_agrees_with_timm_on_photos(mobilevit, reference_data, tmp_path):
    """Sixty photos and published timm weights: the command, the stock pipeline and timm agree."""
    timm = pytest.importorskip("timm")

    labels = ["Corn_Blight", "Common_Rust", "Gray_Leaf_Spot", "Healthy", "Unclassified"]
    truth = {"Northern_Leaf_Blight": "Corn_Blight"}
    (tmp_path / "labels.txt").write_text("\n".join(labels))
    weights = reference_data / "weights" / "timm_mobilevit_xxs_corn.pth"
    model = tmp_path / "corn"
    assert mobilevit("convert", weights, model, "--labels", tmp_path / "labels.txt", "--image-size", 224)[0] == 0

    code, out, _ = mobilevit("predict", reference_data / "data" / "corn-leaf", "--model", model, "--json")
    predictions = {line["image"]: line["predictions"] for line in map(json.loads, out.splitlines())}
    assert code == 0
    assert len(predictions) == 60
    folders = {name: name.split("/")[-2].removeprefix("Corn___") for name in predictions}
    correct = sum(predictions[name][0]["label"] == truth.get(folder, folder) for name, folder in folders.items())
    assert correct >= 58

    stock = transformers.pipeline("image-classification", model=str(model))
    for name, expected in zip(predictions, stock(list(predictions), batch_size=10), strict=True):
        assert predictions[name][0]["label"] == expected[0]["label"]
        assert predictions[name][0]["score"] == pytest.approx(expected[0]["score"], abs=1e-5)

    peer = timm.create_model("mobilevit_xxs", num_classes=5).eval()
    peer.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    ours = mobilevit_hf.MobileViTForImageClassification.from_pretrained(model).eval()
    pixels = stock.image_processor([load_image(name) for name in predictions], return_tensors="pt").pixel_values
    with torch.inference_mode():
        assert (ours(pixels).logits - peer(pixels)).abs().max() < 1e-4
