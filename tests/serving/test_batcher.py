"""Batches are formed while the model is busy; a lone item never waits, and an invalid one fails alone."""

import asyncio
import threading

import pytest

from mobilevit_hf.serving.batcher import Batcher

FOREVER = 1e6  # seconds


class Model:
    """Squares numbers; calls wait until `free` is set. Negative numbers are errors."""

    def __init__(self):
        self.batches, self.free, self.started = [], threading.Event(), threading.Semaphore(0)

    def __call__(self, items):
        self.batches.append(items)
        self.started.release()
        assert self.free.wait(30)
        if any(item < 0 for item in items):
            raise ValueError(f"got {min(items)}")
        return [item**2 for item in items]


@pytest.fixture
def model():
    model = Model()
    yield model
    model.free.set()


async def prepared(item):
    return item


def run(scenario, model, **options):
    """Run a coroutine function with a batcher."""

    async def main():
        batcher = Batcher(model, **{"key": lambda item: 0, "threads": 1, "max_batch_size": 4} | options)
        try:
            return await asyncio.wait_for(scenario(batcher), 30)
        finally:
            batcher.close()

    return asyncio.run(main())


def submit(batcher, *items):
    return [asyncio.ensure_future(batcher.submit(prepared(item))) for item in items]


async def wait_until_started(model):
    assert await asyncio.to_thread(model.started.acquire, timeout=30)


def test_lone_item_does_not_wait(model):
    model.free.set()
    assert run(lambda batcher: batcher.submit(prepared(3)), model, max_wait=FOREVER) == 9


def test_items_that_arrive_while_the_model_is_busy_are_batched(model):
    async def scenario(batcher):
        first = submit(batcher, 0)
        await wait_until_started(model)
        others = submit(batcher, 1, 2, 3, 4, 5, 6)
        await asyncio.sleep(0)
        model.free.set()
        return await asyncio.gather(*first, *others)

    sizes = []
    assert run(scenario, model, max_wait=0, on_batch=sizes.append) == [0, 1, 4, 9, 16, 25, 36]
    assert model.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert sizes == [1, 4, 2]


def test_batch_waits_for_items_that_are_being_prepared(model):
    model.free.set()

    async def scenario(batcher):
        ready = asyncio.Event()

        async def prepare_late():
            await ready.wait()
            return 2

        late = asyncio.ensure_future(batcher.submit(prepare_late()))
        await asyncio.sleep(0)
        (early,) = submit(batcher, 1)
        for _ in range(10):
            await asyncio.sleep(0)
        assert model.batches == []
        ready.set()
        return await asyncio.gather(early, late)

    assert run(scenario, model, max_wait=FOREVER) == [1, 4]
    assert model.batches == [[1, 2]]


def test_batch_starts_after_the_maximum_wait(model):
    model.free.set()

    async def scenario(batcher):
        never = asyncio.ensure_future(batcher.submit(asyncio.Event().wait()))
        await asyncio.sleep(0)
        result = await batcher.submit(prepared(1))
        never.cancel()
        return result

    assert run(scenario, model, max_wait=0.001) == 1


def test_failed_preparation_does_not_delay_others(model):
    model.free.set()

    async def scenario(batcher):
        proceed = asyncio.Event()

        async def fail():
            await proceed.wait()
            raise KeyError("image")

        failed = asyncio.ensure_future(batcher.submit(fail()))
        await asyncio.sleep(0)
        (other,) = submit(batcher, 5)
        await asyncio.sleep(0)
        proceed.set()
        return await asyncio.gather(failed, other, return_exceptions=True)

    error, result = run(scenario, model, max_wait=FOREVER)
    assert isinstance(error, KeyError)
    assert result == 25


def test_invalid_item_fails_alone(model):
    async def scenario(batcher):
        first = submit(batcher, 0)
        await wait_until_started(model)
        others = submit(batcher, 1, -2, 3)
        await asyncio.sleep(0)
        model.free.set()
        return await asyncio.gather(*first, *others, return_exceptions=True)

    first, one, error, three = run(scenario, model, max_wait=0)
    assert (first, one, three) == (0, 1, 9)
    assert str(error) == "got -2"


def test_batch_has_items_of_one_key(model):
    async def scenario(batcher):
        first = submit(batcher, 0)
        await wait_until_started(model)
        others = submit(batcher, 1, 2, 3, 4)
        await asyncio.sleep(0)
        model.free.set()
        return await asyncio.gather(*first, *others)

    assert run(scenario, model, max_wait=0, key=lambda item: item % 2) == [0, 1, 4, 9, 16]
    assert model.batches == [[0], [1, 3], [2, 4]]


def test_cancelled_item_is_not_run(model):
    async def scenario(batcher):
        first = submit(batcher, 0)
        await wait_until_started(model)
        cancelled, other = submit(batcher, 1, 2)
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.sleep(0)
        model.free.set()
        return await asyncio.gather(*first, other)

    assert run(scenario, model, max_wait=0) == [0, 4]
    assert model.batches == [[0], [2]]


def test_batches_run_in_several_threads(model):
    async def scenario(batcher):
        items = submit(batcher, 1)
        await wait_until_started(model)
        items += submit(batcher, 2)
        await wait_until_started(model)  # while the first is running
        model.free.set()
        return await asyncio.gather(*items)

    assert run(scenario, model, max_wait=0, threads=2) == [1, 4]
