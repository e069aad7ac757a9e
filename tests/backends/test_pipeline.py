"""Pipelines on other engines answer as stock transformers does, from many threads too, and nothing off is kept."""

import json
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from engines import need
from hub_server import HubServer
from huggingface_hub import HfApi, constants
from PIL import Image
from transformers.modeling_outputs import ImageClassifierOutput

import mobilevit_hf
from mobilevit_hf.backends import cache, export, formats, loader, runtime, verify
from mobilevit_hf.modeling.fused_mobilevit import FusedModel

TASKS = ["image-classification", "image-segmentation", "object-detection"]
ENGINES = ["onnx", "openvino", "executorch"]
PAIRS = [(task, engine) for task in TASKS for engine in ENGINES if task in formats.FORMATS[engine].tasks]


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory):
    """One cache for the file, so that a model is exported once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOBILEVIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folders(checkpoints, detector):
    return {**checkpoints, "object-detection": detector}


@pytest.fixture(scope="module")
def images():
    """Images of several shapes."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 5, 5, 3), dtype=np.uint8)
    return [Image.fromarray(each).resize((60 + 9 * i, 90), Image.Resampling.BICUBIC) for i, each in enumerate(noise)]


def expected_pipeline(task, folder):
    """The same in torch; stock transformers has no such detector."""
    if task == "object-detection":
        return mobilevit_hf.pipeline(task, str(folder), device="cpu")
    return transformers.pipeline(task, str(folder), device="cpu")


def comparable(answers):
    """What can be told apart in an image's answers: masks as bytes, scores rounded."""
    return [
        {name: value.tobytes() if name == "mask" else value for name, value in each.items() if name != "score"}
        for each in answers
    ], [each["score"] or 0.0 for each in answers]


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("task", "engine"), PAIRS)
def test_answers_as_in_torch_one_by_one_in_batches_and_from_eight_threads(task, engine, folders, images):
    need(engine)
    pipeline = mobilevit_hf.pipeline(task, folders[task], backend=engine)
    assert type(pipeline) is type(expected_pipeline(task, folders[task]))
    options = {"threshold": 0.05} if task == "object-detection" else {}
    expected = expected_pipeline(task, folders[task])(images, **options)
    assert any(expected)
    batch = {} if task == "image-segmentation" else {"batch_size": 4}
    answers = [pipeline(image, **options) for image in images]
    for found in (answers, pipeline(images, **batch, **options)):
        for own, other in zip(found, expected, strict=True):
            (facts, scores), (expected_facts, expected_scores) = comparable(own), comparable(other)
            assert facts == expected_facts
            assert scores == pytest.approx(expected_scores, abs=1e-4)
    by_thread = [None] * 8

    def work(i):
        by_thread[i] = [pipeline(image, **options) for image in images]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(list(map(comparable, found)) == list(map(comparable, answers)) for found in by_thread)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnx", "openvino"])
@pytest.mark.parametrize("task", TASKS)
def test_takes_all_sizes_and_batches(task, engine, folders, tmp_path):
    need(engine)
    model, _ = mobilevit_hf.pipelines.load_model(task, str(folders[task]), {})
    path = tmp_path / Path(formats.FORMATS[engine].path("float32", None)).name
    export.export_program(model, task, engine, path, torch.rand(1, 3, 64, 64), "float32")
    program = runtime.load_program(path, model.config, task, engine, threads=1)
    kept = []
    for shape in [(1, 3, 64, 64), (1, 3, 32, 32), (2, 3, 65, 100), (5, 3, 33, 47), (1, 3, 128, 64), (3, 3, 70, 64)]:
        pixels = torch.rand(shape)
        with torch.no_grad():
            expected = model(pixels)
        found = program(pixel_values=pixels)
        kept.append([(found[name], expected[name]) for name in program.names])
    for pairs in kept:  # looked at when all have run: an answer is not written over by the next
        for found, expected in pairs:
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_an_onnx_file_is_one_file_with_the_names_that_transformers_js_wants(folders, tmp_path):
    onnx = pytest.importorskip("onnx")
    need("onnx")
    model, _ = mobilevit_hf.pipelines.load_model("object-detection", str(folders["object-detection"]), {})
    export.export_program(model, "object-detection", "onnx", tmp_path / "m.onnx", torch.rand(1, 3, 64, 64), "float32")
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
    program = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(program)
    assert [value.name for value in program.graph.input] == ["pixel_values"]
    assert [value.name for value in program.graph.output] == ["logits", "pred_boxes"]
    sizes = [dimension.dim_value for dimension in program.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == [0, 3, 0, 0]  # 0 stands for any
    assert {entry.domain for entry in program.opset_import} == {""}


@pytest.mark.slow
def test_an_openvino_file_says_what_to_compute_in(folders, tmp_path):
    openvino = pytest.importorskip("openvino")
    need("openvino")
    model, _ = mobilevit_hf.pipelines.load_model("image-classification", str(folders["image-classification"]), {})
    for dtype, name in (("float32", "f32"), ("bfloat16", "bf16")):
        path = tmp_path / f"{dtype}.xml"
        export.export_program(model, "image-classification", "openvino", path, torch.rand(1, 3, 64, 64), dtype)
        program = runtime.load_program(path, model.config, "image-classification", "openvino", threads=1)
        program(pixel_values=torch.rand(1, 3, 64, 64))
        (compiled,) = program.engine.programs.values()
        assert compiled.get_property("INFERENCE_PRECISION_HINT") == getattr(openvino.Type, name)
        assert compiled.get_property("INFERENCE_NUM_THREADS") == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_lean_model_computes_the_same_and_leaves_the_model_alone(tiny_model, dtype):
    model = tiny_model(mobilevit_hf.MobileViTForImageClassification)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    # Always the same: in bfloat16 one noise image in thirty is further off than the tolerance.
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    lean = FusedModel(model, ("logits",), dtype)
    assert {parameter.dtype for parameter in lean.parameters()} == {dtype}
    with torch.no_grad():
        (found,), expected = lean(pixels), model(pixels).logits
    tolerance = 1e-4 if dtype == torch.float32 else 0.1 * float(expected.std())
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    assert found.dtype == torch.float32
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


# --- what can't be done ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("image-classification", {"backend": "tensorrt"}, "backend: got 'tensorrt', expected one of torch, onnx"),
        ("image-classification", {"backend": "coreml"}, "expected one of torch, onnx, openvino, executorch"),
        ("image-segmentation", {"backend": "executorch"}, "Use onnx or openvino"),
        ("image-feature-extraction", {"backend": "onnx"}, "can't be exported for onnx"),
        (
            "image-classification",
            {"backend": "onnx", "dtype": "bfloat16"},
            "got bfloat16, expected float32 or float16",
        ),
        ("image-classification", {"backend": "onnx", "quantization": "int8"}, "int8 is offered for openvino"),
        ("image-classification", {"backend": "openvino", "quantization": "int8"}, "mobilevit export MODEL OUT --to"),
        ("image-classification", {"quantization": "int8"}, "Use backend='openvino'"),
        ("image-classification", {"backend": "openvino", "device": "cuda"}, "device: got cuda, expected cpu"),
    ],
)
def test_what_is_not_offered_is_one_clear_line(task, options, words, folders):
    if options.get("backend") in ENGINES:
        need(options["backend"])
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        mobilevit_hf.pipeline(task, str(folders[task]), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_missing_engine_is_one_line_with_the_command(engine, folders, monkeypatch):
    find = formats.importlib.util.find_spec
    missing = formats.FORMATS[engine].packages[-1]
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(ValueError, match=rf"needs .*{missing}.*pip install .*{missing}"):
        mobilevit_hf.pipeline("image-classification", str(folders["image-classification"]), backend=engine)


@pytest.mark.slow
def test_a_program_that_is_off_is_refused_and_nothing_is_left(folders, monkeypatch, tmp_path):
    need("onnx")
    monkeypatch.setenv("MOBILEVIT_CACHE", str(tmp_path))
    export_program = export.export_program

    def export_another(model, *arguments):
        with torch.no_grad():
            model.classifier.bias += torch.tensor([0.0, 0.0, 0.0, 0.002])
            export_program(model, *arguments)
            model.classifier.bias -= torch.tensor([0.0, 0.0, 0.0, 0.002])

    monkeypatch.setattr(loader, "export_program", export_another)
    with pytest.raises(ValueError, match=r"ONNX Runtime in float32: its outputs differ .* by up to 0.002"):
        mobilevit_hf.pipeline("image-classification", str(folders["image-classification"]), backend="onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), 0.5])
def test_the_check_lets_nothing_unsure_through(value):
    with pytest.raises(ValueError, match="It was not kept"):
        verify.check(verify.Comparison(0.0, value), "x", exact=True)
    with pytest.raises(ValueError, match="It was not kept"):
        verify.check(verify.Comparison(value, 1.0), "x", exact=True)
    with pytest.raises(ValueError, match=r"expected 97\.0%"):
        verify.check(verify.Comparison(5.0, value), "x", exact=False)
    verify.check(verify.Comparison(5.0, 0.97), "x", exact=False)


@pytest.mark.parametrize(
    ("found", "tie", "agreement"), [(0, 0.0, 1), (1, 0.0, 0), (1, 0.1, 1), (2, 0.1, 0), (3, 0.1, 0)]
)
def test_labels_that_the_model_all_but_ties_count_as_the_same(found, tie, agreement):
    """The second logit is behind by a two-hundredth of the way from best to worst, the third by over a tenth."""
    logits = torch.tensor([[4.0, 3.95, 2.99, -6.0]])
    model = torch.nn.Identity()
    model.forward = lambda pixel_values: ImageClassifierOutput(logits=logits)
    program = torch.nn.Identity()
    program.names, program.forward = (
        ("logits",),
        lambda pixel_values: ImageClassifierOutput(logits=torch.eye(4)[[found]]),
    )
    pixels = torch.zeros(1, 3, 2, 2)
    assert verify.compare(model, program, pixels, "image-classification", None, tie).agreement == agreement


# --- ready files -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_ready_file_is_taken_if_it_is_of_the_same_weights(folders, tmp_path, monkeypatch, mobilevit):
    need("onnx")
    task, source = "image-classification", folders["image-classification"]
    model, folder = mobilevit_hf.MobileViTForImageClassification.from_pretrained(source), tmp_path / "model"
    model.save_pretrained(folder)
    code, out, err = mobilevit("export", source, folder, "--to", "onnx", "openvino")
    assert (code, err) == (0, "")
    assert "onnx/model.onnx" in out.replace("\n", "")
    entries = json.loads((folder / "export.json").read_text())
    assert [(e["backend"], e["file"]) for e in entries] == [
        ("onnx", "onnx/model.onnx"),
        ("openvino", "openvino/openvino_model.xml"),
    ]
    for entry in entries:
        assert entry["max_error"] <= 1e-3
        assert entry["agreement"] == 1
        assert entry["latency_ms"].keys() == {"1", "8"}
        files = list((folder / entry["file"]).parent.iterdir())
        assert entry["bytes"] == sum(file.stat().st_size for file in files)
    assert (folder / "preprocessor_config.json").read_text() == (source / "preprocessor_config.json").read_text()

    monkeypatch.setenv("MOBILEVIT_CACHE", str(tmp_path / "cache"))
    mobilevit_hf.pipeline(task, folder, backend="onnx")
    assert not (tmp_path / "cache").exists()
    with torch.no_grad():
        model.classifier.bias += 1
    model.save_pretrained(folder)
    mobilevit_hf.pipeline(task, folder, backend="onnx")
    assert len(cache.entries()) == 1


@pytest.mark.slow
def test_a_ready_file_of_a_repository_on_the_hub_is_taken(folders, images, tmp_path, monkeypatch, mobilevit):
    need("openvino")
    source = shutil.copytree(folders["image-classification"], tmp_path / "source")
    assert mobilevit("export", source, source, "--to", "openvino")[0] == 0
    images[0].save(tmp_path / "a.png")
    monkeypatch.setenv("MOBILEVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loader, "export_checked", lambda *args: pytest.fail("exported again"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with HubServer() as hub:
        hub.take_over(monkeypatch)
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("user/model")
        api.upload_folder(repo_id="user/model", folder_path=source)
        expected = expected_pipeline("image-classification", source)(images[0], top_k=1)[0]
        (found,) = mobilevit_hf.pipeline("image-classification", "user/model", backend="openvino")(images[0], top_k=1)
        command = ("predict", tmp_path / "a.png", "--model", "user/model", "--backend", "openvino", "--json")
        code, out, _ = mobilevit(*command)
    assert code == 0
    for answer in (found, json.loads(out)["predictions"][0]):
        assert answer["label"] == expected["label"]
        assert answer["score"] == pytest.approx(expected["score"], abs=1e-4)


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_predict_on_an_engine_says_the_same(folders, images, tmp_path, mobilevit, monkeypatch):
    need("openvino")
    calls, call = [], runtime.OpenVINOEngine.__call__
    monkeypatch.setattr(runtime.OpenVINOEngine, "__call__", lambda *args: calls.append(args) or call(*args))
    images[0].save(tmp_path / "a.png")
    command = ("predict", tmp_path / "a.png", "--model", folders["image-classification"], "--json")
    _, expected, _ = mobilevit(*command)
    assert not calls
    code, out, _ = mobilevit(*command, "--backend", "openvino")
    assert code == 0
    assert calls
    (found,), (wanted,) = ([json.loads(line)["predictions"] for line in text.splitlines()] for text in (out, expected))
    assert [each["label"] for each in found] == [each["label"] for each in wanted]
    assert [each["score"] for each in found] == pytest.approx([each["score"] for each in wanted], abs=1e-4)


def test_export_refuses_and_writes_nothing(folders, tmp_path, mobilevit):
    source = folders["image-segmentation"]
    code, _, err = mobilevit("export", source, tmp_path / "out", "--to", "executorch")
    assert code == 2
    assert "can't be exported for executorch" in err
    code, _, err = mobilevit("export", source, tmp_path / "out", "--to", "openvino", "--quantization", "int8")
    assert code == 2
    assert "--calibration" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_folder_of_exports_alone_answers_too(folders, images, tmp_path, mobilevit):
    """As an app gets it: the programs and what they need, without the weights."""
    need("openvino")
    images[0].save(tmp_path / "a.png")
    source, out = folders["image-classification"], tmp_path / "out"
    assert mobilevit("export", source, out, "--to", "openvino")[0] == 0
    assert not list(out.glob("*.safetensors"))
    command = ("predict", tmp_path / "a.png", "--json", "--model")
    code, found, _ = mobilevit(*command, out, "--backend", "openvino", "--threads", 1)
    assert code == 0
    found, wanted = (json.loads(text)["predictions"][0] for text in (found, mobilevit(*command, source)[1]))
    assert found["label"] == wanted["label"]
    assert found["score"] == pytest.approx(wanted["score"], abs=1e-4)
    code, _, err = mobilevit(*command, out, "--backend", "openvino", "--dtype", "bfloat16")
    assert code == 2
    assert "holds no weights, and openvino/openvino_model.xml for engines" in err


@pytest.mark.slow
def test_less_precision_is_checked_on_the_users_images(folders, images, tmp_path, mobilevit, monkeypatch):
    need("openvino")
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(images):
        image.save(tmp_path / "photos" / f"{number}.png")
    seen = []

    def compare(model, program, pixels, task, processor, tie):
        seen.append((len(pixels), tie))
        return verify.Comparison(0.1, 0.9)

    monkeypatch.setattr(loader, "compare", compare)
    command = ("export", folders["image-classification"], tmp_path / "out", "--to", "openvino", "--dtype", "bfloat16")
    code, _, err = mobilevit(*command, "--calibration", tmp_path / "photos")
    assert code == 2
    assert "90.0% of its answers are the model's" in err
    assert seen == [(3, 0.0)]  # half of them, and no ties


@pytest.mark.slow
def test_threads_are_set_for_engine_and_torch(folders, run_python):
    folder = folders["image-classification"]
    code = f"""
        import torch, mobilevit_hf
        mobilevit_hf.pipeline("image-classification", {str(folder)!r}, threads=1)
        print(torch.get_num_threads())
    """
    assert run_python(code).strip() == "1"
    need("onnx")
    pipeline = mobilevit_hf.pipeline("image-classification", folder, backend="onnx", threads=3)
    assert pipeline.model.engine.session.get_session_options().intra_op_num_threads == 3


@pytest.mark.slow
def test_a_compiled_pipeline_answers_the_same(folders, images):
    folder = folders["image-classification"]
    compiled = mobilevit_hf.pipeline("image-classification", folder, compile=True)
    assert compiled.model._compiled_call_impl is not None
    facts, scores = comparable(compiled(images[0]))
    expected_facts, expected_scores = comparable(expected_pipeline("image-classification", folder)(images[0]))
    assert facts == expected_facts
    assert scores == pytest.approx(expected_scores, abs=1e-4)
    with pytest.raises(ValueError, match="compiles by itself"):
        mobilevit_hf.pipeline("image-classification", folder, backend="onnx", compile=True)


@pytest.mark.slow
def test_core_ml_is_converted_with_named_outputs_and_not_called_verified(folders, tmp_path, mobilevit):
    coremltools = pytest.importorskip("coremltools")
    code, _, _ = mobilevit("export", folders["object-detection"], tmp_path / "out", "--to", "coreml")
    assert code == 0
    (entry,) = json.loads((tmp_path / "out" / "export.json").read_text())
    assert entry["verified"] is False
    assert "max_error" not in entry
    spec = coremltools.models.MLModel(str(tmp_path / "out" / entry["file"]), skip_model_load=True).get_spec()
    assert [value.name for value in spec.description.input] == ["pixel_values"]
    assert [value.name for value in spec.description.output] == ["logits", "pred_boxes"]


# --- what goes wrong on a disk ---------------------------------------------------------------------------------------


def small_openvino():
    """An OpenVINO model made by hand: images of any size to twice themselves."""
    openvino = pytest.importorskip("openvino")
    from openvino import opset8

    pixels = opset8.parameter([-1, 3, -1, -1], np.float32, name="pixel_values")
    return openvino.Model([opset8.multiply(pixels, opset8.constant(np.float32(2)))], [pixels])


def test_openvino_keeps_no_more_requests_than_programs(tmp_path):
    """Each takes memory: images of ever other sizes must not fill it."""
    export.save_openvino(small_openvino(), tmp_path / "m.xml", "float32")
    engine = runtime.OpenVINOEngine(tmp_path / "m.xml", 1)
    for side in range(1, 4 * runtime.MAX_SIZES):
        pixels = np.random.default_rng(side).random((1, 3, side, side), dtype=np.float32)
        np.testing.assert_allclose(engine(pixels)[0], 2 * pixels)
    assert len(vars(engine.of_thread)) == len(engine.programs) == runtime.MAX_SIZES + 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that takes nothing")
def test_openvino_on_a_full_disk_is_one_line(tmp_path):
    model = small_openvino()
    (tmp_path / "m.xml").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"m\.xml: can't be written .*Is there room on the disk\?"):
        export.save_openvino(model, tmp_path / "m.xml", "float32")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_damaged_program_is_named(engine, tmp_path):
    need(engine)
    path = tmp_path / Path(formats.FORMATS[engine].path("float32", None)).name
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=rf"{path.name}: {engine} can't read it \(.*\)\. Remove it"):
        runtime.load_program(path, transformers.MobileViTConfig(), "image-classification", engine, 1)


def test_a_folder_of_exports_is_one_models(folders, tmp_path, mobilevit, monkeypatch):
    """Another model exported there brings its labels along, and the first one's other programs are forgotten."""
    need("onnx")
    need("openvino")

    def write(model, task, processor, backend, path, *others):
        path.write_bytes(b"program")
        path.with_suffix(".bin").write_bytes(b"weights")

    monkeypatch.setattr("mobilevit_hf.cli.export.export_checked", write)
    first, out = folders["image-classification"], tmp_path / "new" / "out"
    model = mobilevit_hf.MobileViTForImageClassification.from_pretrained(first)
    with torch.no_grad():
        model.classifier.bias += 1
    model.config.id2label = dict(enumerate("abcd"))
    second = shutil.copytree(first, tmp_path / "second")
    model.save_pretrained(second)
    assert mobilevit("export", first, out, "--to", "onnx", "openvino")[0] == 0
    assert mobilevit("export", second, out, "--to", "onnx")[0] == 0
    assert json.loads((out / "config.json").read_text())["id2label"]["0"] == "a"
    assert [entry["file"] for entry in json.loads((out / "export.json").read_text())] == ["onnx/model.onnx"]


def test_what_failed_leaves_no_folder_and_what_went_well_is_whole(folders, tmp_path, mobilevit, monkeypatch):
    need("onnx")
    need("openvino")

    def write(model, task, processor, backend, path, *others):
        path.write_bytes(b"program")
        if backend == "openvino":
            raise OSError("No space left on device")

    monkeypatch.setattr("mobilevit_hf.cli.export.export_checked", write)
    source = folders["image-classification"]
    code, _, err = mobilevit("export", source, tmp_path / "a" / "b" / "out", "--to", "openvino")
    assert (code, err) == (2, "error: No space left on device\n")
    assert list(tmp_path.iterdir()) == []
    code, _, err = mobilevit("export", source, tmp_path / "out", "--to", "onnx", "openvino")
    assert (code, err) == (2, "error: No space left on device\n")
    names = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*"))
    assert names == ["config.json", "export.json", "onnx", "onnx/model.onnx", "preprocessor_config.json"]


def test_images_of_several_sizes_are_refused(images):
    processor = transformers.MobileViTImageProcessor(size={"shortest_edge": 32}, do_center_crop=False)
    with pytest.raises(ValueError, match="gives images of 2 sizes, expected one"):
        verify.prepare([images[0], images[3], images[3]], processor)
    assert verify.prepare(images[3:4] * 2, processor).shape[:2] == (2, 3)
