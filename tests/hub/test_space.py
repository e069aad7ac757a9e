"""The Space beside a published model: what it holds, what it leaves alone, and that its program runs."""

import ast
import json
import re
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

import pytest
import yaml
from hub_server import SPACE_README, TOKEN
from huggingface_hub import HfApi, SpaceCard

import mobilevit_hf
from mobilevit_hf.hub import CardOptions, publish, publish_space

REPO, SPACE = "user/shapes", "user/try-shapes"
PACKAGE = Path(mobilevit_hf.__file__).parent
BY_HAND = "# mine\n"


@pytest.fixture
def send(messages):
    def send(**options):
        return publish_space(SPACE, REPO, **{"say": messages.append} | options)

    return send


def put(hub, **texts):
    """Write files into the Space, as somebody does on its page."""
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo(SPACE, repo_type="space", space_sdk="gradio", exist_ok=True)
    for name, text in texts.items():
        path = name.replace("__", "/") + (".md" if name == "README" else ".txt" if name == "requirements" else ".py")
        api.upload_file(path_or_fileobj=text.encode(), path_in_repo=path, repo_id=SPACE, repo_type="space")


def files_of(hub):
    return hub.files(SPACE, repo_type="space")


def test_a_new_space(hub, send):
    publication = send()
    files = files_of(hub)
    assert publication.url == f"{hub.url}/spaces/{SPACE}"
    assert publication.commit == HfApi(endpoint=hub.url).space_info(SPACE).sha
    assert publication.files == {name: len(data) for name, data in files.items()}
    assert hub.commits(SPACE, "space") == 3  # the repository's own, the Hub's README and this one
    facts = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert facts["sdk"] == "gradio"
    assert facts["app_file"] == "app.py"
    assert facts["models"] == [REPO]
    assert SpaceCard(files["README.md"].decode()).data.license == "apache-2.0"
    calls = [node for node in ast.walk(ast.parse(files["app.py"])) if isinstance(node, ast.Call)]
    (build,) = [call for call in calls if call.func.id == "build_app"]
    assert ast.literal_eval(build.args[0]) == [REPO]
    assert {keyword.arg: keyword.value.value for keyword in build.keywords} == {"fixed": True}


def test_the_source_is_all_there_and_nothing_else(hub, send):
    send()
    source = {name: data for name, data in files_of(hub).items() if name.startswith("mobilevit_hf/")}
    license = source.pop("mobilevit_hf/LICENSE").decode()
    assert license == (PACKAGE.parent / "LICENSE").read_text()
    for name, data in source.items():
        assert (PACKAGE.parent / name).read_bytes() == data
    python = {path.relative_to(PACKAGE.parent).as_posix() for path in PACKAGE.rglob("*.py")}
    assert {name for name in python if not name.startswith("mobilevit_hf/assets/")} <= source.keys()
    assert "mobilevit_hf/hub/templates/card.md.jinja" in source
    assert not any("__pycache__" in name or "/assets/" in name for name in source)


def test_requirements_are_those_of_the_project(hub, send):
    send()
    lines = [line for line in files_of(hub)["requirements.txt"].decode().splitlines() if not line.startswith("#")]
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    names = {re.match(r"[\w-]+", line)[0] for line in lines}
    assert names == {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]} | {"gradio"}
    facts = yaml.safe_load(files_of(hub)["README.md"].decode().split("---")[1])
    assert f"gradio=={facts['sdk_version']}" in lines
    low, *_ = re.findall(r"[\d.]+", project["requires-python"])
    assert tuple(map(int, facts["python_version"].split("."))) >= tuple(map(int, low.split(".")))


def test_the_same_again_makes_no_commit(hub, send):
    send()
    commits = hub.commits(SPACE, "space")
    assert send().commit is None
    assert hub.commits(SPACE, "space") == commits


def test_what_another_version_had_is_replaced(hub, send):
    send()
    files = files_of(hub)
    put(hub, mobilevit_hf__old="", mobilevit_hf__convert="", notes="mine")
    publication = send()
    assert publication.deleted == ("mobilevit_hf/old.py",)
    assert files_of(hub) == files | {"notes.py": b"mine"}


def test_a_program_by_hand_is_left_alone(hub, send):
    put(hub, app=BY_HAND)
    before, commits = files_of(hub), hub.commits(SPACE, "space")
    with pytest.raises(ValueError, match=r"user/try-shapes has an app.py that this command did not write"):
        send()
    assert files_of(hub) == before
    assert hub.commits(SPACE, "space") == commits


def test_readme_and_requirements_by_hand_are_kept(hub, send, messages):
    put(hub, README=f"{SPACE_README}\nMine", requirements=BY_HAND)
    send()
    files = files_of(hub)
    assert files["README.md"].decode().endswith("Mine")
    assert files["requirements.txt"].decode() == BY_HAND
    assert "app.py" in files
    assert [line.split()[0] for line in messages] == ["README.md", "requirements.txt"]


def test_a_dry_run_asks_nobody(hub, send):
    publication = send(dry_run=True)
    assert publication.commit is None
    assert {"README.md", "app.py", "requirements.txt", "mobilevit_hf/__init__.py"} <= publication.files.keys()
    assert hub.requests == []


def test_a_private_one_is_not_put_into_a_public_one(hub, send):
    send()
    with pytest.raises(ValueError, match=rf"is public.*{hub.url}/spaces/{SPACE}/settings"):
        send(private=True)


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command(hub, mobilevit, checkpoints):
    folder = checkpoints["image-classification"]
    arguments = ("publish", folder, REPO, "--license", "mit", "--space", SPACE)
    code, out, err = mobilevit(*arguments, "--dry-run")
    assert (code, hub.requests) == (0, [])
    assert f"{hub.url}/spaces/{SPACE}" in out
    assert "mobilevit_hf/ (" in out
    code, out, err = mobilevit(*arguments)
    assert code == 0, err
    assert "config.json" in hub.files(REPO)
    assert "app.py" in files_of(hub)
    assert TOKEN not in out + err


@pytest.mark.parametrize("task", ["image-segmentation", "image-feature-extraction"])
def test_a_model_that_no_page_shows(hub, mobilevit, checkpoints, task):
    code, _, err = mobilevit("publish", checkpoints[task], REPO, "--license", "mit", "--space", SPACE)
    assert code == 2
    assert "expected an image classifier or an object detector" in err
    assert hub.requests == []


# --- that it runs ----------------------------------------------------------------------------------------------------


def lines_until(process, text):
    """What a process prints, up to the line with this text."""
    for line in process.stdout:
        yield line
        if text in line:
            return


@pytest.mark.slow
@pytest.mark.parametrize("task", ["image-classification", "object-detection"])
def test_the_program_runs(hub, send, checkpoints, detector_dir, image, tmp_path, run_python, task):
    """In a clean folder, with the source that is in the Space and the model from the Hub."""
    client = pytest.importorskip("gradio_client")
    publish(
        detector_dir if task == "object-detection" else checkpoints[task],
        REPO,
        card_options=CardOptions(license="mit"),
        say=str,
    )
    send()
    space = tmp_path / "space"
    for name, data in files_of(hub).items():
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
        visitor = client.Client(url, verbose=False, download_files=False)
        photo = client.handle_file(tmp_path / "photo.png")
        labels, drawn, note, *_ = visitor.predict(photo, REPO, "torch", 0.01, api_name="/answer")
        assert "ms with PyTorch" in note
        if task == "object-detection":
            assert drawn["visible"]
        else:
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
        with pytest.raises(Exception, match="not in the list of choices"):  # nobody names a folder of that machine
            visitor.predict(photo, str(detector_dir), "torch", 0.5, api_name="/answer")
    finally:
        process.terminate()
        process.communicate()
