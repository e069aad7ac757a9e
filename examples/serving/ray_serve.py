"""Serve a model on a Ray cluster, in the format of the Inference API: the server of `mobilevit serve` in each replica.

    python examples/serving/ray_serve.py MODEL [--replicas 2] [--gpu] [--backend openvino] [--port 8000]

MODEL is a Hub id, a built-in name, or a directory that all nodes can reach. On a running cluster, the same application
can be deployed with a configuration file of Ray Serve, or with

    serve run ray_serve:build_deployment model=garments replicas=2
"""

import argparse
from functools import partial
from typing import Any

if __name__ == "__main__":  # before the imports, which take seconds
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--replicas", type=int, default=2, help="number of processes; default: %(default)s")
    parser.add_argument("--cpus", type=int, default=1, help="cores per replica; default: %(default)s")
    parser.add_argument("--gpu", action="store_true", help="a GPU per replica")
    parser.add_argument("--backend", default="torch", help="see mobilevit serve; default: %(default)s")
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    args = parser.parse_args()

from ray import serve


def build_deployment(arguments: dict[str, Any]) -> serve.Application:
    """Return the application of Ray Serve.

    Args:
        arguments: `model`, and optionally `replicas`, `cpus`, `gpu` and `backend`.
    """
    model, backend = arguments["model"], arguments.get("backend", "torch")
    cpus = int(arguments.get("cpus", 1))
    gpu = str(arguments.get("gpu", False)).lower() == "true"  # text on the command line of `serve run`
    device = ("cuda" if gpu else "cpu") if backend == "torch" else None

    def build_server() -> Any:
        from mobilevit_hf import tune_allocator
        from mobilevit_hf.serving import build_app, load_pipeline

        tune_allocator()
        load = partial(load_pipeline, model, backend=backend, device=device, threads=cpus)
        return build_app(load, name=model, load_in_background=False)

    deployment = serve.deployment(
        serve.ingress(build_server)(),
        name="mobilevit",
        num_replicas=int(arguments.get("replicas", 1)),
        ray_actor_options={"num_cpus": cpus, "num_gpus": int(gpu)},
        max_ongoing_requests=64,  # of a replica, from which it forms batches
    )
    return deployment.bind()


if __name__ == "__main__":
    serve.start(http_options={"host": "127.0.0.1", "port": args.port})
    serve.run(build_deployment(vars(args)), blocking=True)
