"""Turns of concurrent requests."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("gradio")

from mobilevit_hf.demo import turns
from mobilevit_hf.demo.turns import in_turn


@pytest.mark.parametrize(
    ("requests", "expected"),
    [
        ({"a": [0], "b": [0], "c": [0]}, "abc"),
        ({"d": [1, 2, 3], "a": [0]}, "addd"),
        ({"a": [0], "c": [5], "b": [2]}, "abc"),
    ],
)
def test_requests_take_turns(requests, expected):
    order, started, released = [], threading.Event(), threading.Event()

    def hold():
        started.set()
        assert released.wait(10)

    def request(name, ranks):
        for rank in ranks:
            in_turn(rank, order.append, name)

    with ThreadPoolExecutor() as pool:
        calls = [pool.submit(in_turn, 0, hold)]
        assert started.wait(10)
        for number, (name, ranks) in enumerate(requests.items()):
            calls.append(pool.submit(request, name, ranks))
            while turns._calls.qsize() <= number:
                started.wait()
        released.set()
        for call in calls:
            call.result(10)
    assert order == list(expected)


def test_errors_are_raised_by_the_request():
    with pytest.raises(ZeroDivisionError):
        in_turn(0, lambda: 1 / 0)
    assert in_turn(0, abs, -1) == 1
