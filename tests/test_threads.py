"""Preprocessing in threads, and torch's number of threads in it."""

import itertools
import threading
import warnings

import pytest
import torch

from mobilevit_hf.threads import map_ahead, num_workers, one_torch_thread

AHEAD = 3


def run_in_threads(function, number=8):
    """Call a function in several threads at once and return its results, or raise its first error."""
    results, barrier = [None] * number, threading.Barrier(number)

    def run(index):
        barrier.wait()
        try:
            results[index] = function()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_one_torch_thread_is_set_and_restored_in_each_thread(two_torch_threads):
    def count():
        with warnings.catch_warnings(action="error"):
            with one_torch_thread():
                inside = torch.get_num_threads()
            after = torch.get_num_threads()
            with pytest.raises(ZeroDivisionError), one_torch_thread():
                1 / 0  # noqa: B018
        return inside, after, torch.get_num_threads()

    assert run_in_threads(count) == [(1, 2, 2)] * 8
    assert count() == (1, 2, 2)


def test_other_threads_keep_all_torch_threads(two_torch_threads):
    with one_torch_thread():
        assert run_in_threads(torch.get_num_threads) == [2] * 8


def test_results_are_in_order_and_computed_with_one_torch_thread(two_torch_threads):
    first_may_end = threading.Event()

    def compute(item):
        if item == 0:
            assert first_may_end.wait(10)
        if item == 1:
            first_may_end.set()
        return item, torch.get_num_threads()

    if num_workers() == 1:
        first_may_end.set()
    assert list(map_ahead(compute, range(20), AHEAD)) == [(item, 1) for item in range(20)]
    assert torch.get_num_threads() == 2


def test_items_are_drawn_lazily_and_a_bounded_number_ahead():
    drawn, computed = itertools.count(1), threading.Semaphore(0)
    number = 0

    def items():
        nonlocal number
        while True:
            number = next(drawn)
            yield number

    def compute(item):
        computed.release()
        return item

    results = map_ahead(compute, items(), AHEAD)
    assert number == 0
    for consumed in range(1, 10):
        assert next(results) == consumed
        assert computed.acquire(timeout=10)
        # The result is released when the next one is requested.
        assert number <= consumed - 1 + AHEAD
    results.close()
    assert number <= 9 + AHEAD


def test_results_do_not_wait_for_later_items():
    requests = []
    asked = threading.Semaphore(0)

    def items():
        while True:
            assert asked.acquire(timeout=10)
            yield requests[-1]

    results = map_ahead(str, items(), AHEAD)
    for request in range(5):
        requests.append(request)
        asked.release()
        assert next(results) == str(request)
    results.close()
    asked.release()


def test_next_item_is_computed_while_the_caller_uses_a_result():
    started = [threading.Event() for _ in range(10)]

    def compute(item):
        started[item].set()
        return item

    for item in map_ahead(compute, range(10), 2):
        assert all(event.wait(10) for event in started[: item + 2])


@pytest.mark.parametrize("where", ["function", "items"])
def test_an_error_is_raised_at_the_position_of_its_item(where):
    def items():
        yield from (1, 2)
        if where == "items":
            raise KeyError("third")
        yield 0

    def compute(item):
        return 1 / item

    results = map_ahead(compute, items(), AHEAD)
    assert [next(results), next(results)] == [1, 0.5]
    with pytest.raises(KeyError if where == "items" else ZeroDivisionError):
        next(results)
    assert list(results) == []


def test_threads_end_with_the_iteration():
    before = set(threading.enumerate())
    results = map_ahead(str, itertools.count(), AHEAD)
    next(results)
    started = set(threading.enumerate()) - before
    assert started
    results.close()
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()
