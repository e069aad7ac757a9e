"""The mobilevit command as a person uses it: pictures in, labels out, and one line for each thing that is wrong."""

import json
import shutil
import sys

import pytest
import transformers
from hub_server import HubServer
from huggingface_hub import HfApi, constants
from rich.console import Console

import mobilevit_hf
from mobilevit_hf import checkpoints as checkpoint_names
from mobilevit_hf import cli
from mobilevit_hf.data.images import load_image


@pytest.fixture
def mobilevit(monkeypatch, capsys):
    """Run the command in this process; returns exit code, standard output and standard error."""
    monkeypatch.setattr(cli, "tune_allocator", lambda: True)  # a setting of the whole process, tested in a clean one

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mobilevit", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return end.value.code, captured.out, captured.err

    return run


@pytest.fixture
def classifier(checkpoints):
    return checkpoints["image-classification"]


@pytest.fixture
def photos(picture, tmp_path):
    """A folder with three pictures of different shapes and kinds."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    picture.save(folder / "a.jpg")
    picture.rotate(90, expand=True).save(folder / "b.png")
    picture.convert("CMYK").resize((70, 200)).save(folder / "more" / "c.jpg")
    return folder


def test_answers_are_those_of_stock_pipeline(mobilevit, classifier, photos):
    code, out, err = mobilevit("predict", photos, "--model", classifier, "--json")
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["image"] for line in lines] == [str(photos / name) for name in ("a.jpg", "b.png", "more/c.jpg")]
    stock = transformers.pipeline("image-classification", model=str(classifier))
    for line in lines:
        expected = stock(line["image"])
        assert [p["label"] for p in line["predictions"]] == [p["label"] for p in expected]
        assert [p["score"] for p in line["predictions"]] == pytest.approx([p["score"] for p in expected], abs=1e-5)


def test_more_pictures_than_a_batch(mobilevit, classifier, picture, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "BATCH_SIZE", 2)
    for i in range(5):
        picture.rotate(72 * i).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    code, out, _ = mobilevit("predict", tmp_path, "--model", classifier, "--json", "--top-k", 1)
    assert code == 1
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["image"] for line in lines] == [str(tmp_path / f"{i}.png") for i in range(5)]
    classify = mobilevit_hf.pipeline("image-classification", str(classifier))
    for i in (0, 2, 3, 4):
        (expected,) = classify(load_image(tmp_path / f"{i}.png"), top_k=1)
        assert lines[i]["predictions"][0]["score"] == pytest.approx(expected["score"], abs=1e-5)
    assert "not a picture" in lines[1]["error"]


@pytest.mark.parametrize("terminal", ["output", "messages"])
def test_a_progress_bar_leaves_the_other_stream_alone(mobilevit, classifier, photos, monkeypatch, terminal):
    """With only one of the two streams on a terminal, the bar is there and the other holds what it should."""
    monkeypatch.setattr(cli, "BATCH_SIZE", 1)
    (photos / "z.jpg").write_text("no picture")
    monkeypatch.setattr(cli, terminal, Console(stderr=terminal == "messages", force_terminal=True))
    _, out, err = mobilevit("predict", photos, "--model", classifier, "--json")
    streams = {"output": out, "messages": err}
    assert "Looking at pictures" in streams.pop(terminal)
    (other,) = streams.values()
    assert "Looking" not in other
    if terminal == "messages":
        assert [json.loads(line)["image"] for line in other.splitlines()] == sorted(map(str, photos.rglob("*.*")))
    else:
        assert "1 of 4 could not be read" in other


def test_the_table(mobilevit, classifier, photos):
    code, out, _ = mobilevit("predict", photos / "a.jpg", "--model", classifier, "--top-k", 2)
    assert code == 0
    assert str(photos / "a.jpg") in out
    assert out.count("%") == 2


def test_without_a_picture_it_shows_a_sample(mobilevit, classifier):
    code, out, err = mobilevit("predict", "--model", classifier)
    assert code == 0
    assert "sample photo" in err
    assert "%" in out


def test_unreadable_pictures_are_named_and_the_rest_answered(mobilevit, classifier, photos):
    (photos / "bad.jpg").write_text("not a picture")
    code, out, err = mobilevit("predict", photos, photos / "gone.jpg", "--model", classifier)
    assert code == 1
    assert "bad.jpg: not a picture" in err
    assert "gone.jpg: no such file" in err
    assert "2 of 5" in err
    assert out.count("a.jpg") == 1
    assert "b.png" in out
    assert "c.jpg" in out


def test_hostile_names_are_written_out(mobilevit, classifier, picture, tmp_path):
    name = "a[red]\x1b[31m\n.png"
    picture.save(tmp_path / name)
    (tmp_path / "\x1b[2J.jpg").write_text("no picture")
    _, out, err = mobilevit("predict", tmp_path, "--model", classifier)
    assert "\x1b" not in out + err
    assert "a[red]\\x1b[31m\\n.png" in out
    assert "\\x1b[2J.jpg" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "no/such/model"], "can't be a Hub id"),
        (["--model", "{photo}"], "mobilevit convert"),
        (["--model", "{folder}"], "config.json"),
        (["--model", "{segmenter}"], "expected an image classifier"),
        (["--model", "{classifier}", "--device", "cuda"], "no such device"),
        (["--model", "{classifier}", "--device", "abacus"], "abacus"),
        (["--model", "{classifier}", "--top-k", "0"], "--top-k"),
    ],
)
def test_mistakes_get_one_line(mobilevit, checkpoints, photos, arguments, words, monkeypatch):
    monkeypatch.setattr(cli.torch.cuda, "is_available", lambda: False)
    places = {
        "photo": photos / "a.jpg",
        "folder": photos,
        "segmenter": checkpoints["image-segmentation"],
        "classifier": checkpoints["image-classification"],
    }
    code, out, err = mobilevit("predict", photos / "a.jpg", *(a.format(**places) for a in arguments))
    assert code == 2
    assert words in " ".join(err.split())
    assert "Traceback" not in out + err


def test_an_empty_folder_is_an_error(mobilevit, tmp_path):
    code, _, err = mobilevit("predict", tmp_path)
    assert code == 1
    assert "no pictures in this folder" in " ".join(err.split())


def test_a_url(mobilevit, classifier, photos, served_file):
    url = served_file("a.jpg", (photos / "a.jpg").read_bytes())
    answers = [mobilevit("predict", source, "--model", classifier, "--json")[1] for source in (url, photos / "a.jpg")]
    assert json.loads(answers[0])["predictions"] == json.loads(answers[1])["predictions"]


def test_models_are_looked_up_as_path_then_built_in(classifier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assets = tmp_path / "assets"
    shutil.copytree(classifier, assets / "garments")
    monkeypatch.setattr(checkpoint_names, "ASSETS", assets)
    assert checkpoint_names.builtin_models() == ["garments"]
    assert checkpoint_names.resolve_model("garments") == assets / "garments"
    shutil.copytree(classifier, tmp_path / "garments")
    assert checkpoint_names.resolve_model("garments").resolve() == tmp_path / "garments"


def test_no_hub_is_one_line(mobilevit, photos, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    code, _, err = mobilevit("predict", photos / "a.jpg")
    assert code == 2
    assert "apple/mobilevit-xx-small" in err
    assert "--model DIR" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_model_of_the_hub(checkpoints, photos, run_python, tmp_path, monkeypatch):
    """In a clean process: found by its id, again once downloaded, and a clear word where there is none."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with HubServer() as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("user/repo")
        api.upload_folder(repo_id="user/repo", folder_path=checkpoints["image-classification"])
        code = f"""
            import sys, contextlib
            from mobilevit_hf import cli
            from huggingface_hub import constants

            def mobilevit(*arguments):
                sys.argv = ["mobilevit", *arguments]
                with contextlib.redirect_stderr(sys.stdout):
                    try:
                        cli.main()
                    except SystemExit as end:
                        print("exit", end.code)

            photo = {str(photos / "a.jpg")!r}
            mobilevit("predict", photo, "--model", "user/repo", "--json")
            mobilevit("predict", photo, "--model", "user/nothing")
            constants.ENDPOINT = "http://127.0.0.1:9"
            mobilevit("predict", photo, "--model", "user/repo", "--json")
        """
        lines = run_python(code, env=hub.environment(tmp_path / "home")).splitlines()
    stock = transformers.pipeline("image-classification", model=str(checkpoints["image-classification"]))
    expected = [prediction["score"] for prediction in stock(str(photos / "a.jpg"))]
    assert lines[1] == lines[-1] == "exit 0"
    for line in (lines[0], lines[-2]):
        assert [p["score"] for p in json.loads(line)["predictions"]] == pytest.approx(expected, abs=1e-5)
    assert "There is no directory user/nothing" in lines[2]
    assert lines[3] == "exit 2"


def test_convert(mobilevit, classifier, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\nc\nd\n")
    weights = classifier / "model.safetensors"
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


def test_version(mobilevit):
    assert mobilevit("--version")[:2] == (0, f"mobilevit_hf {mobilevit_hf.__version__}\n")


@pytest.mark.slow
def test_corn_leaves(mobilevit, reference_data, tmp_path):
    """Sixty real photos, weights that somebody trained with timm: our command, stock pipeline and timm agree."""
    timm = pytest.importorskip("timm")
    import torch

    labels = ["Corn_Blight", "Common_Rust", "Gray_Leaf_Spot", "Healthy", "Unclassified"]
    truth = {"Northern_Leaf_Blight": "Corn_Blight"}
    (tmp_path / "labels.txt").write_text("\n".join(labels))
    weights = reference_data / "weights" / "timm_mobilevit_xxs_corn.pth"
    model = tmp_path / "corn"
    assert mobilevit("convert", weights, model, "--labels", tmp_path / "labels.txt", "--image-size", 224)[0] == 0

    code, out, _ = mobilevit("predict", reference_data / "data" / "corn-leaf", "--model", model, "--json")
    answers = {line["image"]: line["predictions"] for line in map(json.loads, out.splitlines())}
    assert code == 0
    assert len(answers) == 60
    folders = {name: name.split("/")[-2].removeprefix("Corn___") for name in answers}
    right = sum(answers[name][0]["label"] == truth.get(folder, folder) for name, folder in folders.items())
    assert right >= 58

    stock = transformers.pipeline("image-classification", model=str(model))
    for name, expected in zip(answers, stock(list(answers), batch_size=10), strict=True):
        assert answers[name][0]["label"] == expected[0]["label"]
        assert answers[name][0]["score"] == pytest.approx(expected[0]["score"], abs=1e-5)

    peer = timm.create_model("mobilevit_xxs", num_classes=5).eval()
    peer.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    ours = mobilevit_hf.MobileViTForImageClassification.from_pretrained(model).eval()
    pixels = stock.image_processor([load_image(name) for name in answers], return_tensors="pt").pixel_values
    with torch.inference_mode():
        assert (ours(pixels).logits - peer(pixels)).abs().max() < 1e-4
