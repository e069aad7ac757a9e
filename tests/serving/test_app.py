"""Limits, errors, health and metrics of the server."""

import base64
import socket
import threading
import time

import pytest
from hostile_files import png

import mobilevit_hf
from mobilevit_hf.data.images import MAX_PIXELS


@pytest.fixture(scope="module")
def app(run_app, classifier):
    return run_app(lambda: classifier, max_image_bytes=100_000)


@pytest.fixture(scope="module")
def detector_app(run_app, detector_dir):
    return run_app(lambda: mobilevit_hf.pipeline("object-detection", detector_dir, device="cpu"))


def encode(data):
    return base64.b64encode(data).decode()


def assert_error(answer, status, *words):
    """Check that an answer is one line of JSON without paths, tokens and a traceback."""
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
    assert set(answer.json) == {"error"}
    text = answer.json["error"]
    assert "\n" not in text
    assert not any(secret in text for secret in ("Traceback", "hf_", "/work", "/tmp", "/home", " at 0x"))
    assert all(word in text for word in words), text


# --- requests --------------------------------------------------------------------------------------------------------


def test_json_request_has_the_answer_of_the_image(app, jpeg):
    expected = app.post(jpeg).json
    assert len(expected) == 4
    for inputs in (encode(jpeg), f"data:image/jpeg;base64,{encode(jpeg)}"):
        assert app.post({"inputs": inputs}).json == expected
        assert app.post({"inputs": inputs, "parameters": None, "options": {"wait_for_model": True}}).json == expected
        assert app.post({"inputs": inputs, "parameters": {"top_k": 2, "function_to_apply": None}}).json == expected[:2]
    assert app.post(jpeg, Content_Type="image/png").json == expected
    assert app.post(jpeg, Content_Type="application/x-www-form-urlencoded").json == expected  # curl --data-binary


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, ["no content"]),
        (b"text", 400, ["can't be read"]),
        (b"\xff\xd8\xff\xe0" + bytes(100), 400, ["can't be read"]),
        (png(20_000, 20_000), 400, ["megapixels"]),
        ({}, 400, ["no inputs"]),
        ({"inputs": "no base64!"}, 400, ["base64"]),
        ({"inputs": "ä"}, 400, ["base64"]),
        ({"inputs": ""}, 400, ["no content"]),
        ({"inputs": encode(b"text")}, 400, ["can't be read"]),
        ({"inputs": ["a", "b"]}, 422, ["one image"]),
        ({"inputs": "http://127.0.0.1/image.png"}, 422, ["URL", "not fetched"]),
        ({"inputs": "/etc/passwd"}, 400, []),
        ({"inputs": "file:///etc/passwd"}, 400, ["base64"]),
        ({"inputs": "", "paramters": {}}, 422, ["'paramters'", "unknown field"]),
        ({"inputs": "", "parameters": [1]}, 422, ["parameters"]),
        ({"inputs": "", "parameters": {"topk": 1}}, 422, ["'topk'", "top_k, function_to_apply"]),
        ({"inputs": "", "parameters": {"threshold": 0.5}}, 422, ["'threshold'", "image-classification"]),
        ({"inputs": "", "parameters": {"top_k": 0}}, 422, ["top_k: got 0", "at least 1"]),
        ({"inputs": "", "parameters": {"top_k": True}}, 422, ["top_k: got true"]),
        ({"inputs": "", "parameters": {"top_k": "5"}}, 422, ['top_k: got "5"']),
        ({"inputs": "", "parameters": {"function_to_apply": "tanh"}}, 422, ["sigmoid or softmax or none"]),
        ({"inputs": "", "parameters": {"function_to_apply": ["none"]}}, 422, ["function_to_apply"]),
    ],
)
def test_invalid_request_is_an_error_of_one_line(app, body, status, words):
    assert MAX_PIXELS < 20_000**2
    assert_error(app.post(body), status, *words)


@pytest.mark.parametrize("text", ["{", "[]", "1", '"text"', "[" * 100_000, '{"inputs": NaN}', "\0", "1" * 10_000])
def test_invalid_json_is_an_error_of_one_line(app, text):
    answer = app.post(text, Content_Type="application/json; charset=utf-8")
    assert answer.status in (400, 422)
    assert_error(answer, answer.status)


@pytest.mark.parametrize("threshold", ["0.5", -0.1, 1.1, float("nan"), float("inf"), True, [0.5], {}])
def test_invalid_threshold_is_an_error_of_one_line(detector_app, jpeg, threshold):
    answer = detector_app.post({"inputs": encode(jpeg), "parameters": {"threshold": threshold}})
    assert_error(answer, 422, "threshold: got ", "a number from 0 to 1")


def test_form_is_refused(app, jpeg):
    assert_error(app.post(jpeg, Content_Type="multipart/form-data; boundary=x"), 415, "form")


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/", 405), ("POST", "/unknown", 404)])
def test_other_paths_and_methods_are_errors_in_json(app, method, path, status):
    assert_error(app.request(method, path), status)


@pytest.mark.parametrize("path", ["/pipeline/object-detection", "/models/user/model/pipeline/object-detection"])
def test_path_of_another_task_is_not_found(app, path):
    assert_error(app.request("POST", path), 404, "object-detection", "image-classification")


def test_token_is_required_if_the_server_has_one(run_app, classifier, jpeg):
    app = run_app(lambda: classifier, api_key="secret")
    for given in ({}, {"Authorization": "Bearer other"}, {"Authorization": "secret"}, {"Authorization": "Bearer ä"}):
        assert_error(app.post(jpeg, **given), 401, "API key")
    assert app.post(jpeg, Authorization="Bearer secret").status == 200


# --- size ------------------------------------------------------------------------------------------------------------


def test_large_image_is_refused(app, jpeg):
    limit = 100_000
    padded = jpeg + bytes(limit - len(jpeg))  # after the end of a JPEG
    assert app.post(padded).status == 200
    assert app.post({"inputs": encode(padded)}).status == 200
    assert_error(app.post(padded + b"0"), 413, "100000 bytes")
    assert_error(app.post({"inputs": encode(padded + b"0")}), 413, "100000 bytes")
    assert_error(app.post(b"{" + bytes(10**6), Content_Type="application/json"), 413, "100000 bytes")


def test_size_limit_applies_without_content_length(app, jpeg):
    chunks = [jpeg[:100], jpeg[100:], bytes(100_000)]
    assert_error(app.request("POST", "/", iter(chunks)), 413, "100000 bytes")
    assert app.request("POST", "/", iter(chunks[:2])).status == 200


def test_large_image_is_refused_before_it_is_sent(app):
    with socket.create_connection(("127.0.0.1", app.port), timeout=30) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000000\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")


def test_endless_upload_is_refused_when_it_reaches_the_limit(app):
    with socket.create_connection(("127.0.0.1", app.port), timeout=10) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.sendall(b"20000\r\n" + bytes(0x20000) + b"\r\n")  # 128 KiB, not the last chunk
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")


# --- time and queue --------------------------------------------------------------------------------------------------


def test_slow_prediction_is_a_timeout(run_app, gated, jpeg):
    app = run_app(lambda: gated, timeout=0.3)
    gated.close()
    assert_error(app.post(jpeg), 504, "0.3 s")
    gated.free.set()
    assert app.post(jpeg).status == 200
    assert app.metric("mobilevit_requests_total", status="504") == 1


def test_slow_upload_is_a_timeout(run_app, classifier):
    app = run_app(lambda: classifier, timeout=0.2)
    with socket.create_connection(("127.0.0.1", app.port), timeout=30) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nstart")
        assert client.recv(100).startswith(b"HTTP/1.1 408 ")


def test_full_queue_refuses_requests(run_app, gated, jpeg, threads):
    app = run_app(lambda: gated, max_queue=3, max_batch_size=1)
    gated.close()
    accepted = [threads.submit(app.post, jpeg) for _ in range(3)]
    while app.metric("mobilevit_queue_length") < 3:
        pass
    answer = app.post(jpeg)
    assert_error(answer, 503, "model is busy")
    assert int(answer.headers["retry-after"]) >= 1
    gated.free.set()
    assert [answer.result().status for answer in accepted] == [200] * 3
    assert app.post(jpeg).status == 200
    assert app.metric("mobilevit_queue_length") == 0


def test_interrupted_upload_frees_its_place(run_app, classifier, jpeg):
    app = run_app(lambda: classifier, max_queue=1)
    with socket.create_connection(("127.0.0.1", app.port), timeout=30) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nstart")
        while app.metric("mobilevit_queue_length") < 1:
            pass
    while app.metric("mobilevit_queue_length") > 0:
        pass
    assert app.post(jpeg).status == 200


def test_requests_are_batched_while_the_model_is_busy(run_app, gated, jpeg, threads):
    app = run_app(lambda: gated, max_batch_size=16)
    gated.close()
    before = app.metric("mobilevit_images_total")
    running = [threads.submit(app.post, jpeg) for _ in range(24)]
    while app.metric("mobilevit_queue_length") < 24:
        pass
    gated.free.set()
    assert {answer.result().status for answer in running} == {200}
    assert app.metric("mobilevit_images_total") - before == 24
    assert app.metric("mobilevit_batch_size_count") < 24
    assert app.metric("mobilevit_batch_size_sum") == 24


# --- model -----------------------------------------------------------------------------------------------------------


def test_server_is_not_ready_until_the_model_is_loaded(run_app, classifier, jpeg):
    proceed = threading.Event()

    def load():
        assert proceed.wait(60)
        return classifier

    app = run_app(load, wait=False)
    assert app.request("GET", "/live").status == 200
    answer = app.request("GET", "/health")
    assert (answer.status, answer.json) == (503, {"status": "loading"})
    answer = app.post(jpeg)
    assert_error(answer, 503, "currently loading")
    assert "retry-after" in answer.headers
    assert_error(app.request("GET", "/info"), 503)
    proceed.set()
    assert app.loaded.wait(60)
    answer = app.request("GET", "/health")
    assert (answer.status, answer.json) == (200, {"status": "ok"})
    assert app.post(jpeg).status == 200
    info = app.request("GET", "/info").json
    assert (info["model_id"], info["pipeline_tag"]) == ("model", "image-classification")


def test_model_that_cannot_be_loaded_is_reported(run_app):
    def load():
        raise ValueError("model: got none.")

    app = run_app(load, wait=False)
    assert app.loaded.wait(60)
    assert [str(error) for error in app.errors] == ["model: got none."]
    assert app.request("GET", "/health").status == 503


@pytest.mark.parametrize("error", [None, ValueError("model: got none.")])
def test_application_can_start_after_the_model_is_loaded(run_app, classifier, error):
    events = []

    def load():
        events.append("load")
        if error:
            raise error
        return classifier

    app = run_app(load, wait=False, load_in_background=False)
    while not app.server.started and app.thread.is_alive():
        time.sleep(0.01)
    assert (app.server.started, app.loaded.is_set(), events) == (error is None, True, ["load"])
    if error:
        app.thread.join(30)
        assert not app.thread.is_alive()
    else:
        assert app.request("GET", "/health").status == 200


def test_unexpected_error_is_logged_and_its_answer_has_no_details(run_app, gated, jpeg, caplog):
    app = run_app(lambda: gated)

    def fail(*args, **kwargs):
        raise RuntimeError("/home/me/model: hf_abcdefghijklmnop")

    gated.forward = fail
    assert_error(app.post(jpeg), 500, "internal error")
    (record,) = caplog.records
    assert record.getMessage() == "Request failed: RuntimeError: /home/me/model: hf_…"
    assert record.exc_info is None
    del gated.forward
    assert app.post(jpeg).status == 200


def test_image_with_infinite_outputs_fails_alone(run_app, overflowing_dir, image, jpeg, threads):
    pipe = mobilevit_hf.pipeline("image-classification", overflowing_dir, device="cpu")
    app = run_app(lambda: pipe)
    black = png(64, 64, data=bytes(64 * (3 * 64 + 1)))
    answers = list(threads.map(app.post, [jpeg, black] * 8))
    for answer in answers[::2]:
        assert_error(answer, 422, "expected finite outputs")
    assert {answer.status for answer in answers[1::2]} == {200}


# --- shutdown and metrics --------------------------------------------------------------------------------------------


def test_accepted_requests_are_answered_at_shutdown(run_app, gated, jpeg, threads):
    app = run_app(lambda: gated)
    gated.close()
    accepted = [threads.submit(app.post, jpeg) for _ in range(5)]
    while app.metric("mobilevit_queue_length") < 5:
        pass
    app.server.should_exit = True
    while app.listener.fileno() != -1:  # closed first
        time.sleep(0.01)
    with pytest.raises(OSError):
        app.post(jpeg)
    gated.free.set()
    assert [answer.result().status for answer in accepted] == [200] * 5
    app.thread.join(30)
    assert not app.thread.is_alive()


def test_metrics_count_requests(run_app, classifier, jpeg):
    app = run_app(lambda: classifier)
    for body in (jpeg, jpeg, b"text"):
        app.post(body)
    app.request("GET", "/health")
    assert app.metric("mobilevit_requests_total", status="200") == 2
    assert app.metric("mobilevit_requests_total", status="400") == 1
    assert app.metric("mobilevit_request_duration_seconds_count") == 3
    assert app.metric("mobilevit_images_total") == 2
    assert app.metric("mobilevit_batch_size_bucket", le="1.0") == 2
    assert app.metric("process_resident_memory_bytes") > 0


def test_limits_are_checked():
    from mobilevit_hf.serving import Limits

    invalid = {"max_batch_size": 0, "max_queue": 0, "max_image_bytes": 0, "max_wait_ms": -1, "timeout": 0}
    not_finite = [(name, value) for name in ("max_wait_ms", "timeout") for value in (float("nan"), float("inf"))]
    for name, value in [*invalid.items(), *not_finite]:
        with pytest.raises(ValueError, match=f"^{name}: got {value}, expected"):
            Limits(**{name: value})
