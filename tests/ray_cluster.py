"""A Ray cluster of several node processes on this machine, whose parts can be killed."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

# Ray waits for 30 seconds for its processes to start, which is too short while other tests run.
MAX_ATTEMPTS = 4


def free_ports(number):
    """Return free ports, all different."""
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class RayNode:
    """`ray start` and the processes that it starts."""

    def __init__(self, folder, *arguments):
        self.log = folder / f"node-{len(list(folder.glob('node-*')))}.log"
        common = ("--num-cpus=1", "--num-gpus=0", "--object-store-memory=100000000", "--disable-usage-stats")
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *arguments, *common]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=environment(folder), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self):
        """Wait until the node has started; return whether it has."""
        while "Ray runtime started" not in self.log.read_text():
            if self.process.poll() is not None:
                return False
            time.sleep(0.2)
        return True

    def workers(self):
        """Return the processes of the actors that run chunks."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if "MapWorker" in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill(self):
        """Send SIGKILL to all processes of the node."""
        try:
            node = psutil.Process(self.process.pid)
            processes = [node, *node.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait()


class RayCluster:
    """A head and other nodes, all on loopback.

    Args:
        nodes: Number of nodes besides the head.
    """

    def __init__(self, nodes=1):
        self._temporary = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp")  # paths of sockets are short
        self.folder = Path(self._temporary.name)
        (self.folder / "home").mkdir()
        self.port, self.client_port, self.dashboard_port = free_ports(3)
        self.address = f"127.0.0.1:{self.port}"
        self.head, self.nodes = None, []
        try:
            self.start_head()
            for _ in range(nodes):
                self.start_node()
        except BaseException:
            self.close()
            raise

    def start_head(self):
        """Start the head, again after it was killed."""
        ports = {"port": self.port, "ray-client-server-port": self.client_port, "dashboard-port": self.dashboard_port}
        self.head = self._start(
            "--head",
            "--node-ip-address=127.0.0.1",
            "--include-dashboard=false",
            f"--temp-dir={self.folder / 'ray'}",
            *(f"--{name}={port}" for name, port in ports.items()),
        )

    def start_node(self):
        """Start another node."""
        self.nodes.append(self._start(f"--address={self.address}"))

    def _start(self, *arguments):
        for _ in range(MAX_ATTEMPTS):
            node = RayNode(self.folder, *arguments)
            try:
                if node.wait():
                    return node
            except BaseException:
                node.kill()
                raise
            node.kill()
        raise RuntimeError(node.log.read_text())

    def workers(self):
        """Return the processes of the actors that run chunks, on all nodes."""
        return [worker for node in (self.head, *self.nodes) for worker in node.workers()]

    def stop(self):
        """Kill all processes."""
        for node in (*self.nodes, *filter(None, [self.head])):
            node.kill()

    def close(self):
        """Kill all processes and remove their files."""
        self.stop()
        self._temporary.cleanup()


def environment(folder):
    """Return the environment of the processes of a cluster and its drivers.

    The home folder is a new one: Ray uses, and creates, an authentication token in it.
    """
    return os.environ | {
        "HOME": str(Path(folder) / "home"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
