"""The process of the Ray driver: its messages, its replacement when it is lost, and its errors."""

import importlib.util
import itertools
import os
import signal
import sys
import textwrap

import pytest
from conftest import PACKAGE_PARENT
from ray_cluster import free_ports

from mobilevit_hf.batch import Chunk, ChunkResult, Job, ray_executor
from mobilevit_hf.batch.ray_executor import RayExecutor

JOB = Job("model", "hash", "image-classification", "/output", "parquet")


def make_chunks(number):
    """Return chunks without images."""
    return [Chunk(index, "files", "/source", num_images=0) for index in range(number)]


@pytest.fixture
def fake_driver(monkeypatch, tmp_path):
    """Function that replaces the driver by code, which calls `send` with messages for the `task`."""

    def replace(code):
        head = """
            import os, pickle, signal, sys
            from mobilevit_hf.batch.ray_executor import Connected, Failed
            from mobilevit_hf.batch.types import ChunkResult
            task = pickle.load(sys.stdin.buffer)
            def send(message):
                sys.stdout.buffer.write(pickle.dumps(message))
                sys.stdout.buffer.flush()
        """
        script = tmp_path / "driver.py"
        script.write_text(textwrap.dedent(head) + textwrap.dedent(code))
        monkeypatch.setattr(ray_executor, "DRIVER", [sys.executable, str(script)])
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        monkeypatch.setenv("PYTHONPATH", str(PACKAGE_PARENT))
        return RayExecutor("local")

    return replace


def test_missing_ray_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^ray: got no installation of Ray, .* pip install .*\[ray\]"):
        RayExecutor()


@pytest.mark.parametrize("address", ["head", "10.0.0.1", "host:port", ":6379", "ray://head:10001"])
def test_malformed_address_is_an_error(fake_driver, address):
    fake_driver("")
    with pytest.raises(ValueError, match=f"^ray: got {address}, expected HOST:PORT"):
        RayExecutor(address)


def test_address_of_the_environment_replaces_auto(monkeypatch, fake_driver):
    fake_driver("")
    address = f"127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConnectionError, match=address):
        RayExecutor("auto")
    assert RayExecutor("local").address == "local"


def test_address_without_a_cluster_is_an_error(fake_driver):
    fake_driver("")
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(ConnectionError, match=f"^ray: got {address}, where no cluster answers"):
        RayExecutor(address)


def test_killed_driver_is_replaced_for_the_other_chunks(fake_driver, tmp_path):
    executor = fake_driver(f"""
        with open({str(tmp_path / "log")!r}, "a") as file:
            print([chunk.index for chunk in task.chunks], file=file)
        send(Connected(None))
        for chunk in task.chunks[:2]:
            send(ChunkResult(chunk.index, 0, 0))
        if len(task.chunks) > 2:
            sys.stdout.buffer.write(pickle.dumps(ChunkResult(task.chunks[2].index, 0, 0))[:10])
            sys.stdout.buffer.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert [result.index for result in executor.run(make_chunks(5), JOB)] == [0, 1, 2, 3, 4]
    assert (tmp_path / "log").read_text().splitlines() == ["[0, 1, 2, 3, 4]", "[2, 3, 4]", "[4]"]


def test_repeated_result_of_a_chunk_is_ignored(fake_driver):
    executor = fake_driver("""
        send(Connected(None))
        for chunk in [*task.chunks, *task.chunks]:
            send(ChunkResult(chunk.index, 0, 0))
    """)
    assert [result.index for result in executor.run(make_chunks(3), JOB)] == [0, 1, 2]


def test_final_failure_is_an_error(fake_driver):
    executor = fake_driver('send(Connected(None)); send(Failed("model: got X, expected Y. Do Z.", is_final=True))')
    with pytest.raises(ValueError, match=r"^model: got X, expected Y. Do Z.$"):
        list(executor.run(make_chunks(1), JOB))


def test_driver_that_never_connects_is_an_error_with_its_last_line(fake_driver):
    executor = fake_driver('print("first"); print("no room", file=sys.stderr); sys.exit(3)')
    with pytest.raises(ConnectionError, match=r"^ray: got local and no connection \(no room\), expected a cluster\."):
        list(executor.run(make_chunks(1), JOB))


def test_failures_without_progress_end_the_job(fake_driver, tmp_path):
    executor = fake_driver(f"""
        with open({str(tmp_path / "log")!r}, "a") as file:
            print(file=file)
        send(Connected(None))
        send(Failed("WorkerCrashedError: reason", is_final=False))
    """)
    with pytest.raises(
        ConnectionError, match=r"^ray: got 4 failures in a row \(WorkerCrashedError: reason\).*--resume"
    ):
        list(executor.run(make_chunks(1), JOB))
    assert len((tmp_path / "log").read_text()) == 1 + ray_executor.MAX_LOST_DRIVERS


def test_head_that_does_not_come_back_is_an_error(fake_driver, monkeypatch):
    address = f"127.0.0.1:{free_ports(1)[0]}"
    executor = fake_driver(f"""
        send(Connected({address!r}))
        send(ChunkResult(0, 0, 0))
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    monkeypatch.setattr(ray_executor, "HEAD_TIMEOUT_S", 0)
    monkeypatch.setattr(ray_executor.time, "sleep", lambda seconds: None)
    results = executor.run(make_chunks(2), JOB)
    assert next(results) == ChunkResult(0, 0, 0)
    with pytest.raises(
        ConnectionError, match=f"^ray: got no connection to the head of the cluster at {address} .*--resume"
    ):
        next(results)


def test_chunks_are_drawn_in_limited_numbers(fake_driver, monkeypatch):
    executor = fake_driver("""
        send(Connected(None))
        for chunk in task.chunks:
            send(ChunkResult(chunk.index, 0, 0))
    """)
    monkeypatch.setattr(ray_executor, "CHUNKS_PER_DATASET", 3)
    endless = (Chunk(index, "files", "/source") for index in itertools.count())
    results = executor.run(endless, JOB)
    assert [next(results).index for _ in range(4)] == [0, 1, 2, 3]
    assert next(endless).index == 6


def test_closing_the_results_ends_the_driver(fake_driver):
    executor = fake_driver("""
        send(Connected(None))
        send(ChunkResult(0, os.getpid(), 0))
        signal.pause()
    """)
    results = executor.run(make_chunks(2), JOB)
    pid = next(results).images
    results.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
