"""Space with a demo of a published model."""

import ast
import io
import json
import re
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

import pytest
import yaml
from hub_server import SPACE_README
from huggingface_hub import HfApi, SpaceCard
from PIL import Image
from space_files import REPO, SPACE, space_files, upload_to_space

import mobilevit_hf
from mobilevit_hf.hub import CardOptions, publish, publish_space
from mobilevit_hf.tasks import EXPORTABLE_TASKS

PACKAGE = Path(mobilevit_hf.__file__).parent
HANDWRITTEN = "# mine\n"


@pytest.fixture
def publish_demo(messages):
    """A function that publishes the Space; log lines go to `messages`."""
    return lambda **options: publish_space(SPACE, REPO, **{"log": messages.append} | options)


def upload(hub, texts):
    upload_to_space(hub, texts, "gradio")


def test_new_space(hub, publish_demo):
    publication = publish_demo()
    files = space_files(hub)
    assert publication.url == f"{hub.url}/spaces/{SPACE}"
    assert publication.commit == HfApi(endpoint=hub.url).space_info(SPACE).sha
    assert publication.files == {name: len(data) for name, data in files.items()}
    assert hub.commits(SPACE, "space") == 3  # the initial commit, the Hub's README and this one
    metadata = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert metadata["sdk"] == "gradio"
    assert metadata["app_file"] == "app.py"
    assert metadata["models"] == [REPO]
    assert SpaceCard(files["README.md"].decode()).data.license == "apache-2.0"
    calls = [node for node in ast.walk(ast.parse(files["app.py"])) if isinstance(node, ast.Call)]
    (build,) = [call for call in calls if call.func.id == "build_app"]
    assert ast.literal_eval(build.args[0]) == [REPO]
    assert {keyword.arg: keyword.value.value for keyword in build.keywords} == {"fixed": True}


def test_space_contains_the_source_code(hub, publish_demo):
    publish_demo()
    source = {name: data for name, data in space_files(hub).items() if name.startswith("mobilevit_hf/")}
    license = source.pop("mobilevit_hf/LICENSE").decode()
    assert license == (PACKAGE.parent / "LICENSE").read_text()
    for name, data in source.items():
        assert (PACKAGE.parent / name).read_bytes() == data
    python = {path.relative_to(PACKAGE.parent).as_posix() for path in PACKAGE.rglob("*.py")}
    assert {name for name in python if not name.startswith("mobilevit_hf/assets/")} <= source.keys()
    assert {"mobilevit_hf/hub/templates/card.md.jinja", "mobilevit_hf/demo/page.css"} <= source.keys()
    assert not any("__pycache__" in name or "/assets/" in name for name in source)


def test_requirements_match_the_project(hub, publish_demo):
    publish_demo()
    lines = [line for line in space_files(hub)["requirements.txt"].decode().splitlines() if not line.startswith("#")]
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    names = {re.match(r"[\w-]+", line)[0] for line in lines}
    assert names == {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]} | {"gradio"}
    metadata = yaml.safe_load(space_files(hub)["README.md"].decode().split("---")[1])
    assert f"gradio=={metadata['sdk_version']}" in lines
    low, *_ = re.findall(r"[\d.]+", project["requires-python"])
    assert tuple(map(int, metadata["python_version"].split("."))) >= tuple(map(int, low.split(".")))


def test_unchanged_space_makes_no_commit(hub, publish_demo):
    publish_demo()
    commits = hub.commits(SPACE, "space")
    assert publish_demo().commit is None
    assert hub.commits(SPACE, "space") == commits


def test_files_of_another_version_are_deleted(hub, publish_demo):
    publish_demo()
    files = space_files(hub)
    upload(hub, {"mobilevit_hf/old.py": "", "mobilevit_hf/samples.py": "", "notes.py": "mine"})
    publication = publish_demo()
    assert publication.deleted == ("mobilevit_hf/old.py",)
    assert space_files(hub) == files | {"notes.py": b"mine"}


def test_handwritten_app_is_kept(hub, publish_demo):
    upload(hub, {"app.py": HANDWRITTEN})
    before, commits = space_files(hub), hub.commits(SPACE, "space")
    with pytest.raises(ValueError, match=r"user/try-shapes: got a handwritten app\.py"):
        publish_demo()
    assert space_files(hub) == before
    assert hub.commits(SPACE, "space") == commits


def test_handwritten_readme_and_requirements_are_kept(hub, publish_demo, messages):
    readme = SPACE_README.format(sdk="gradio") + "\nMine"
    upload(hub, {"README.md": readme, "requirements.txt": HANDWRITTEN})
    publish_demo()
    files = space_files(hub)
    assert files["README.md"].decode().endswith("Mine")
    assert files["requirements.txt"].decode() == HANDWRITTEN
    assert "app.py" in files
    assert [line.split()[0] for line in messages] == ["README.md", "requirements.txt"]


def test_handwritten_readme_of_another_sdk_is_an_error(hub, publish_demo):
    upload(hub, {"README.md": SPACE_README.format(sdk="static") + "\nMine"})
    before = space_files(hub)
    with pytest.raises(ValueError, match=r"got sdk static in a handwritten README\.md, expected gradio"):
        publish_demo()
    assert space_files(hub) == before


def test_dry_run_sends_no_request(hub, publish_demo):
    publication = publish_demo(dry_run=True)
    assert publication.commit is None
    assert {"README.md", "app.py", "requirements.txt", "mobilevit_hf/__init__.py"} <= publication.files.keys()
    assert hub.requests == []


def test_private_publication_to_a_public_space_fails(hub, publish_demo):
    publish_demo()
    with pytest.raises(ValueError, match=rf"got a public repository.*{hub.url}/spaces/{SPACE}/settings"):
        publish_demo(private=True)


# --- running the Space -----------------------------------------------------------------------------------------------


def lines_until(process, text):
    """Yield the output of a process up to the line with a text."""
    for line in process.stdout:
        yield line
        if text in line:
            return


@pytest.mark.slow
@pytest.mark.parametrize("task", EXPORTABLE_TASKS)
def test_app_runs(hub, publish_demo, checkpoints, detector_dir, segmenter_dir, image, tmp_path, run_python, task):
    """Runs in a clean folder, with the source code of the Space and the model from the Hub."""
    client = pytest.importorskip("gradio_client")
    model_dirs = {**checkpoints, "object-detection": detector_dir, "image-segmentation": segmenter_dir}
    publish(model_dirs[task], REPO, card_options=CardOptions(license="mit"), log=str)
    publish_demo()
    space = tmp_path / "space"
    for name, data in space_files(hub).items():
        (space / name).parent.mkdir(exist_ok=True, parents=True)
        (space / name).write_bytes(data)
    (space / "mobilevit_hf/demo/__init__.py").open("a").write('\nprint("from the Space", flush=True)\n')
    image.save(tmp_path / "photo.png")
    environment = hub.environment(tmp_path / "home") | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "app.py"],
        cwd=space,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "stderr").open("w"),
        text=True,
    )
    try:
        output = list(lines_until(process, "Running on local URL"))
        assert "from the Space\n" in output, (tmp_path / "stderr").read_text()
        url = re.search(r"http://\S+", output[-1])[0]
        page = json.load(urllib.request.urlopen(f"{url}/config"))
        choices = [part["props"] for part in page["components"] if part["props"].get("label") == "Model"]
        assert [(props["choices"], props["allow_custom_value"]) for props in choices] == [([[REPO, REPO]], False)]
        api = client.Client(url, verbose=False, download_files=False)
        photo = client.handle_file(tmp_path / "photo.png")
        labels, drawn, note, *_ = api.predict(photo, REPO, "torch", 0.01, api_name="/predict")
        assert "ms with PyTorch" in note
        if task == "image-classification":
            assert drawn is None
            best = json.loads(
                run_python(
                    f"""
                    import json, transformers
                    classify = transformers.pipeline({task!r}, {str(checkpoints[task])!r})
                    print(json.dumps(classify({str(tmp_path / "photo.png")!r})[0]))
                    """,
                    without_package=True,
                )
            )
            assert labels["value"]["label"] == best["label"]
            assert labels["value"]["confidences"][0]["confidence"] == pytest.approx(best["score"], abs=1e-4)
        else:
            with urllib.request.urlopen(drawn["url"]) as file, Image.open(io.BytesIO(file.read())) as shown:
                assert shown.size == image.size
                assert shown.convert("RGB").tobytes() != image.tobytes()
        with pytest.raises(Exception, match="not in the list of choices"):  # no local folder can be opened
            api.predict(photo, str(detector_dir), "torch", 0.5, api_name="/predict")
    finally:
        process.terminate()
        process.communicate()
