"""Load `mobilevit serve` and a plain server with concurrent clients: throughput, latency and errors.

The plain server is that of tutorials: a FastAPI endpoint that calls the stock `transformers.pipeline` per request, in
FastAPI's thread pool. Both servers run at the same time and are loaded in turns, by a process of its own. Its clients
keep their connections, and send the next image as soon as the last one is answered.
"""

import argparse
import asyncio
import contextlib
import json
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import Any

import psutil
from pipelines import write_photos
from side_by_side import describe_environment
from workers import OURS, environment_without_allocator_settings, is_installed

PLAIN = "FastAPI + stock pipeline"
START_SECONDS = 180
WARM_UP_SECONDS = 3.0
TIMEOUT_SECONDS = 60  # of a request; a longer one is an error
NOTE = (
    "requests/s: answered with predictions. p50, p99: latency of all clients' requests. CPU ms: CPU time of the "
    "server per request. x ours: throughput of ours divided by that of the server in the same round, median over the "
    "rounds."
)


# --- plain server ----------------------------------------------------------------------------------------------------


def serve_plain(task: str, model: str, port: int) -> None:
    """Run the plain server."""
    import io
    from typing import Annotated

    import uvicorn
    from fastapi import Body, FastAPI
    from PIL import Image
    from transformers import pipeline

    app, predict = FastAPI(), pipeline(task, model=model, device="cpu", trust_remote_code=True)

    @app.post("/")
    def answer(image: Annotated[bytes, Body(media_type="image/jpeg")]) -> list[dict[str, Any]]:
        return predict(Image.open(io.BytesIO(image)))

    @app.get("/health")
    def report_health() -> str:
        return "ok"

    uvicorn.run(app, port=port, log_level="warning")


# --- load ------------------------------------------------------------------------------------------------------------


async def run_client(port: int, bodies: list[bytes], first: int, end: float, results: list[tuple[int, float]]) -> None:
    """Send images one after another until a time of `perf_counter`; append status (0: none) and seconds of each."""
    writer = None
    number = first
    while (start := time.perf_counter()) < end:
        status, body = 0, bodies[number % len(bodies)]
        number += 1
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                if writer is None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                head = f"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}"
                writer.write(head.encode() + b"\r\n\r\n" + body)
                answer = (await reader.readuntil(b"\r\n\r\n")).lower()
                status = int(answer.split(None, 2)[1])
                length = int(answer.partition(b"content-length:")[2].split(None, 1)[0])
                await reader.readexactly(length)
        except (OSError, EOFError, TimeoutError, ValueError):
            status = 0
            if writer:
                writer.close()
            writer = None
        results.append((status, time.perf_counter() - start))
    if writer:
        writer.close()


async def load(port: int, bodies: list[bytes], clients: int, seconds: float) -> dict[str, Any]:
    """Return what the clients measured in this time."""
    results: list[tuple[int, float]] = []
    start = time.perf_counter()
    await asyncio.gather(*(run_client(port, bodies, number, start + seconds, results) for number in range(clients)))
    elapsed = time.perf_counter() - start
    latencies = sorted(latency for status, latency in results if status == 200)
    errors: dict[str, int] = {}
    for status, _ in results:
        if status != 200:
            errors[str(status)] = errors.get(str(status), 0) + 1
    percentiles = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else [float("nan")] * 99
    return {
        "requests_per_second": len(latencies) / elapsed,
        "p50_ms": percentiles[49] * 1000,
        "p99_ms": percentiles[98] * 1000,
        "requests": len(latencies),
        "errors": errors,
    }


# --- parent process --------------------------------------------------------------------------------------------------


def free_port() -> int:
    """Return a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def start_server(command: list[str], port: int) -> Generator[psutil.Process]:
    """Run a server, from when it is ready."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment_without_allocator_settings())
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"The server did not start: {' '.join(command)}")
            time.sleep(0.2)
        yield psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def run_load(process: psutil.Process, port: int, folder: str, clients: int, seconds: float) -> dict[str, Any]:
    """Return what the clients of a process of its own measured, after a warm-up, and the CPU time of the server."""
    command = [sys.executable, __file__, "--load", str(port), folder, str(clients)]
    subprocess.run([*command, str(min(WARM_UP_SECONDS, seconds))], stdout=subprocess.DEVNULL, check=True)
    before = process.cpu_times()
    result = json.loads(subprocess.run([*command, str(seconds)], stdout=subprocess.PIPE, check=True).stdout)
    after = process.cpu_times()
    used = after.user + after.system - before.user - before.system
    return result | {"cpu_ms": 1000 * used / max(result["requests"], 1)}


def make_commands(args: argparse.Namespace) -> dict[str, tuple[list[str], int]]:
    """Return the command and the port of each server, ours first."""
    from mobilevit_hf.model_sources import read_task, resolve_model

    ports = free_port(), free_port()
    command = [sys.executable, "-m", "mobilevit_hf", "serve", args.model, "--port", str(ports[0]), *args.options]
    commands = {OURS: (command, ports[0])}
    if is_installed("fastapi"):
        folder = resolve_model(args.model)
        task = read_task(args.model, folder).name
        plain = [sys.executable, __file__, "--plain", task, str(folder), str(ports[1])]
        commands[PLAIN] = plain, ports[1]
    return commands


def print_report(rounds: list[dict[str, dict[str, Any]]], environment: dict[str, Any]) -> None:
    """Print a row per server, the note and the environment."""
    print(f"{'server':<28}{'requests/s':>12}{'p50 ms':>10}{'p99 ms':>10}{'CPU ms':>8}{'errors':>16}{'x ours':>8}")
    for name in rounds[0]:
        median = {
            key: statistics.median(result[name][key] for result in rounds)
            for key in ("requests_per_second", "p50_ms", "p99_ms", "cpu_ms")
        }
        ratio = statistics.median(
            result[OURS]["requests_per_second"] / max(result[name]["requests_per_second"], 1e-9) for result in rounds
        )
        failed = sum(sum(result[name]["errors"].values()) for result in rounds)
        total = failed + sum(result[name]["requests"] for result in rounds)
        print(
            f"{name:<28}{median['requests_per_second']:>12.1f}{median['p50_ms']:>10.0f}{median['p99_ms']:>10.0f}"
            f"{median['cpu_ms']:>8.1f}{f'{failed} of {total}':>16}{ratio:>8.2f}"
        )
    print(NOTE)
    print("\n".join(f"{name}: {value}" for name, value in environment.items()))


def main() -> None:
    """Run the command line."""
    if sys.argv[1:2] == ["--plain"]:
        serve_plain(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        return
    if sys.argv[1:2] == ["--load"]:
        port, folder, clients, seconds = sys.argv[2:]
        bodies = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
        print(json.dumps(asyncio.run(load(int(port), bodies, int(clients), float(seconds)))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="garments", help="model directory, built-in name or Hub id")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds per round and server")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all results to this file")
    parser.add_argument("options", nargs="*", metavar="OPTION", help="options of `mobilevit serve`, after --")
    args = parser.parse_args()
    environment = describe_environment()
    rounds: list[dict[str, dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        write_photos(Path(folder))
        commands = make_commands(args)
        processes = {name: stack.enter_context(start_server(*commands[name])) for name in commands}
        for number in range(args.rounds):
            names = list(commands) if number % 2 == 0 else list(commands)[::-1]
            results = {
                name: run_load(processes[name], commands[name][1], folder, args.clients, args.seconds)
                for name in names
            }
            rounds.append({name: results[name] for name in commands})
    print_report(rounds, environment)
    if args.json:
        report = {"environment": environment, "note": NOTE, "rounds": rounds}
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
