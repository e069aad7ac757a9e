"""Run single items in batches that are formed while the model is busy."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..threads import worker_pool

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    result: "asyncio.Future[Result]"
    since: float


class Batcher(Generic[Item, Result]):
    """Runs items of one event loop in batches, in threads.

    A batch starts when a thread is free and the batch is full, no other item is being prepared, or its first item has
    waited for `max_wait` seconds. So an item without others never waits.

    Args:
        run: Function that returns the results of a batch, in order.
        key: Function that returns the key of an item; a batch has items of one key, such as images of one size.
        threads: Number of batches that run at a time.
        max_batch_size: Items per batch.
        max_wait: Seconds.
        on_batch: Called with the number of items of each batch.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], list[Result]],
        key: Callable[[Item], Hashable],
        *,
        threads: int,
        max_batch_size: int,
        max_wait: float,
        on_batch: Callable[[int], object] = lambda size: None,
    ) -> None:
        self._run, self._key, self._on_batch = run, key, on_batch
        self._max_batch_size, self._max_wait = max_batch_size, max_wait
        self._waiting: list[_Waiting[Item, Result]] = []
        self._preparing = 0
        self._changed = asyncio.Event()
        self._pool = worker_pool(threads)
        self._tasks = [asyncio.get_running_loop().create_task(self._work()) for _ in range(threads)]

    async def submit(self, preparation: Awaitable[Item]) -> Result:
        """Await the preparation of an item and return its result.

        Raises:
            Exception: Of the preparation, or of the item's run. Other items of its batch are run without it.
        """
        self._preparing += 1
        try:
            item = await preparation
        finally:
            self._preparing -= 1
            self._changed.set()
        loop = asyncio.get_running_loop()
        waiting = _Waiting(item, loop.create_future(), loop.time())
        self._waiting.append(waiting)
        return await waiting.result

    def close(self) -> None:
        """Stop. Items that are not finished are cancelled."""
        for task in self._tasks:
            task.cancel()
        for waiting in self._waiting:
            waiting.result.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not (batch := await self._next_batch()):
                continue
            self._on_batch(len(batch))
            outcomes = await loop.run_in_executor(self._pool, self._try_run, [waiting.item for waiting in batch])
            for waiting, outcome in zip(batch, outcomes, strict=True):
                if waiting.result.done():  # cancelled
                    continue
                if isinstance(outcome, Exception):
                    waiting.result.set_exception(outcome)
                else:
                    waiting.result.set_result(outcome)

    async def _next_batch(self) -> list[_Waiting[Item, Result]]:
        """Wait for a batch and return it; empty if its items were cancelled."""
        while not self._waiting:
            await self._wait_for_change()
        deadline = self._waiting[0].since + self._max_wait
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while self._preparing and len(self._waiting) < self._max_batch_size:
                    await self._wait_for_change()
        self._waiting = [waiting for waiting in self._waiting if not waiting.result.done()]
        if not self._waiting:
            return []
        key = self._key(self._waiting[0].item)
        batch = [waiting for waiting in self._waiting if self._key(waiting.item) == key][: self._max_batch_size]
        taken = set(map(id, batch))
        self._waiting = [waiting for waiting in self._waiting if id(waiting) not in taken]
        return batch

    async def _wait_for_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _try_run(self, items: list[Item]) -> list[Result | Exception]:
        """Return the result of each item, or its error; one by one if the batch fails."""
        try:
            return list(self._run(items))
        except Exception as error:
            if len(items) == 1:
                return [error]
        return [outcome for item in items for outcome in self._try_run([item])]
