"""HTTP server with the Inference API's request and response format (extra `serve`).

Starlette and uvicorn do HTTP, prometheus-client the metrics; the batcher is this package's, a few dozen lines. Model
servers with one of their own were considered: LitServe reads JSON or forms, not image files as request bodies; its
queue is unbounded, it decodes the images of a batch one after another, waits for a batch even if it is idle, and
terminates the process that runs the model at shutdown, with the requests in it. Ray Serve, for several machines, can
run this server's application: see examples/serving/ray_serve.py.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
