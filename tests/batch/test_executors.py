import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image
from toy_checkpoints import save_classifier

from mobilevit_hf.batch import predict_dataset

pytestmark = pytest.mark.slow

NUM_LINKS = 1200
COMMAND = [sys.executable, "-m", "mobilevit_hf", "predict"]


@pytest.fixture(scope="module")
def model(tiny_fields, tmp_path_factory):
    """Folder of a classifier of 32-pixel images."""
    return save_classifier(tmp_path_factory.mktemp("model"), 32, 32, tiny_fields | {"image_size": 32})


@pytest.fixture(scope="module")
def links(tmp_path_factory):
    """Folder of many hard links to a few images, of which one can't be read."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "links").mkdir()
    for i in range(10):
        Image.effect_noise((32, 32), 20 + 10 * i).convert("RGB").save(folder / f"{i}.png")
    (folder / "9.png").write_bytes(b"no image")
    for i in range(NUM_LINKS):
        os.link(folder / f"{i % 10}.png", folder / "links" / f"{i:05}.png")
    return folder / "links"


@pytest.fixture(scope="module")
def expected(links, model, tmp_path_factory):
    """Rows of a single process."""
    folder = tmp_path_factory.mktemp("single") / "out"
    predict_dataset(links, folder, model, chunk_size=100)
    return read_rows(folder)


def read_rows(folder):
    """Return the rows of all parts by the name of the image; none is there twice."""
    rows = [row for path in sorted(folder.glob("part-*")) for row in pq.read_table(path).to_pylist()]
    assert len({row["image"] for row in rows}) == len(rows)
    return {row["image"]: row for row in rows}


def start(links, out, model, *options):
    arguments = [links, "--output", out, "--model", model, "--workers", "2", "--chunk-size", "50", *options]
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for_parts(out, number, process):
    while len([*out.glob("part-*")]) < number:
        assert process.poll() is None
        time.sleep(0.02)


def workers_of(process):
    return [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]


def test_killed_worker_is_replaced(links, expected, model, tmp_path):
    process = start(links, tmp_path / "out", model)
    wait_for_parts(tmp_path / "out", 2, process)
    for worker in workers_of(process):
        worker.kill()
    _, err = process.communicate()
    assert process.returncode == 1, err  # images that can't be read
    assert read_rows(tmp_path / "out") == expected


def test_job_goes_on_after_its_process_was_killed(links, expected, model, tmp_path):
    process = start(links, tmp_path / "out", model)
    wait_for_parts(tmp_path / "out", 3, process)
    workers = workers_of(process)
    process.kill()
    process.communicate()
    psutil.wait_procs(workers, timeout=60)
    assert not any(worker.is_running() for worker in workers)
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}
    assert 3 <= len(parts) < NUM_LINKS // 50
    process = start(links, tmp_path / "out", model, "--resume")
    _, err = process.communicate()
    assert process.returncode == 1, err
    assert read_rows(tmp_path / "out") == expected
    assert all(path.stat().st_mtime_ns == time for path, time in parts.items())
    summary = json.loads((tmp_path / "out" / "_summary").read_text())
    assert (summary["images"], summary["unreadable"]) == (NUM_LINKS, NUM_LINKS // 10)
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")) == []


def test_interrupted_job_says_how_to_continue(links, model, tmp_path):
    process = start(links, tmp_path / "out", model)
    wait_for_parts(tmp_path / "out", 1, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert f"--resume continues {tmp_path / 'out'}" in err


def test_image_that_ends_every_worker_is_named(links, model, tmp_path):
    """A worker that dies again and again in the same chunk ends the job."""
    process = start(links, tmp_path / "out", model)

    def kill_all():
        while process.poll() is None:
            for worker in workers_of(process):
                worker.kill()
            time.sleep(0.1)

    killer = threading.Thread(target=kill_all)
    killer.start()
    _, err = process.communicate()
    killer.join()
    assert process.returncode == 2
    assert "got 3 workers that died (signal 9) in" in err


def test_error_of_a_worker_is_one_line(links, model, tmp_path):
    (tmp_path / "photos").mkdir()
    os.link(links / "00000.png", tmp_path / "photos" / "a.png")
    process = start(tmp_path / "photos", tmp_path / "out", model, "--device", "cuda")
    _, err = process.communicate()
    assert process.returncode == 2
    (line,) = err.splitlines()
    assert line.startswith("error: ")
