"""`AsyncQueueWriter`: real event loops, which must go on turning whatever the disk does."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from infi.ramen_client.async_writer import AsyncQueueWriter
from infi.ramen_client.errors import InvalidMessage, QueueClosed, QueueGone, QueueUnusable
from infi.ramen_client.queue_writer import QueueWriter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from infi.ramen_client.config import QueueReaderConfig
    from infi.ramen_client.queue_reader import QueueReader
    from infi.ramen_client.testing import RamenServer


class Gate:
    """Holds pushes up in the writer's thread until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()
        push = QueueWriter.push

        def slow(writer: QueueWriter, *arguments: Any) -> str:
            self.entered.set()
            assert self.open.wait(20)
            return push(writer, *arguments)

        monkeypatch.setattr(QueueWriter, "push", slow)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


def payloads(config: QueueReaderConfig) -> list[str]:
    with QueueWriter(config) as writer:
        found = []
        while (item := writer._queue.pop()) is not None:
            found.append(item["reqid"])
        return found


def test_what_was_awaited_is_in_the_queue_in_the_order_of_the_calls(config: QueueReaderConfig) -> None:
    async def main() -> None:
        async with AsyncQueueWriter(config) as writer:
            assert await writer.push("a", "b", 1, {"n": 0}, reqid="0") == "0"
            assert await asyncio.gather(
                *(writer.push("a", "b", 1, n, reqid=str(n)) for n in range(1, 200))
            ) == [str(n) for n in range(1, 200)]
            assert await writer.push_many(("a", "b", 1, n, f"m{n}") for n in range(3)) == ["m0", "m1", "m2"]
            assert await writer.queue_size() == 203
            assert (await writer.books()).pushed == 203

    asyncio.run(main())
    assert payloads(config) == [str(n) for n in range(200)] + ["m0", "m1", "m2"]


def test_the_loop_turns_while_the_disk_does_not_answer(config: QueueReaderConfig, gate: Gate) -> None:
    async def main() -> None:
        async with AsyncQueueWriter(config) as writer:
            task = asyncio.create_task(writer.push("a", "b", 1, {}))
            await until(gate.entered.is_set)
            for _ in range(100):
                await asyncio.sleep(0)
            assert not task.done()
            gate.open.set()
            await task

    asyncio.run(main())


def test_errors_come_where_the_call_is_awaited_and_hurt_no_other(
    config: QueueReaderConfig, queue_dir: Path
) -> None:
    async def main() -> None:
        async with AsyncQueueWriter(config) as writer:
            found = await asyncio.gather(
                writer.push("a", "b", 1, 1), writer.push("a b", "b", 1, 2), writer.push("a", "b", 1, 3),
                return_exceptions=True,
            )  # fmt: skip
            assert [type(one) for one in found] == [str, InvalidMessage, str]
            assert await writer.queue_size() == 2
            for file in queue_dir.iterdir():
                file.unlink()
            with pytest.raises(QueueGone):
                await writer.push("a", "b", 1, 1)
            with pytest.raises(QueueGone):
                await writer.wait_sent()

    asyncio.run(main())


def test_a_queue_that_cannot_be_opened_is_said_at_async_with_and_nothing_is_left(
    make_config: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")

    async def main() -> None:
        with pytest.raises(QueueUnusable):
            async with AsyncQueueWriter(make_config(queue_dir=str(tmp_path / "file"))):
                raise AssertionError("not entered")

    asyncio.run(main())
    asyncio.run(no_threads_left())


async def no_threads_left() -> None:
    await until(lambda: not any(thread.name.startswith("ramen-writer") for thread in threading.enumerate()))


def test_no_more_than_max_pending_calls_are_kept_and_the_others_wait_their_turn(
    config: QueueReaderConfig, gate: Gate
) -> None:
    async def main() -> None:
        async with AsyncQueueWriter(config, max_pending=3) as writer:
            tasks = [asyncio.create_task(writer.push("a", "b", 1, n, reqid=str(n))) for n in range(10)]
            await until(gate.entered.is_set)
            for _ in range(20):
                await asyncio.sleep(0)
            assert writer._thread._work_queue.qsize() == 2
            for task in tasks[1:]:  # cancelled ones that the thread has not passed keep their places
                task.cancel()
            more = asyncio.create_task(writer.push("a", "b", 1, 99, reqid="99"))
            for _ in range(20):
                await asyncio.sleep(0)
            assert writer._thread._work_queue.qsize() == 2
            gate.open.set()
            await asyncio.gather(tasks[0], more)

    asyncio.run(main())
    assert payloads(config) == ["0", "99"]
    with pytest.raises(ValueError, match="max_pending"):
        AsyncQueueWriter(config, max_pending=0)


def test_a_cancelled_push_that_had_not_begun_is_not_stored_and_one_that_had_may_be(
    config: QueueReaderConfig, gate: Gate
) -> None:
    async def main() -> None:
        async with AsyncQueueWriter(config) as writer:
            begun = asyncio.create_task(writer.push("a", "b", 1, 1, reqid="begun"))
            await until(gate.entered.is_set)
            waiting = asyncio.create_task(writer.push("a", "b", 1, 2, reqid="waiting"))
            await asyncio.sleep(0)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await writer.push("a", "b", 1, 3, reqid="timed out")
            begun.cancel()
            waiting.cancel()
            found = await asyncio.gather(begun, waiting, return_exceptions=True)
            assert all(isinstance(one, asyncio.CancelledError) for one in found)
            gate.open.set()
            await writer.push("a", "b", 1, 4, reqid="after")

    asyncio.run(main())
    assert payloads(config) == ["begun", "after"]


def test_close_waits_for_what_was_called_before_and_refuses_what_comes_after(
    config: QueueReaderConfig, gate: Gate
) -> None:
    async def main() -> None:
        writer = AsyncQueueWriter(config)
        task = asyncio.create_task(writer.push("a", "b", 1, 1, reqid="1"))
        await until(gate.entered.is_set)
        closing = asyncio.create_task(writer.close())
        await asyncio.sleep(0)
        with pytest.raises(QueueClosed):
            await writer.push("a", "b", 1, 2)
        assert not closing.done()
        gate.open.set()
        await asyncio.gather(task, closing)
        await writer.close()
        with pytest.raises(QueueClosed):
            await writer.queue_size()
        await no_threads_left()

    asyncio.run(main())
    assert payloads(config) == ["1"]


def test_wait_sent_waits_for_a_reader_without_holding_pushes_up(
    server: RamenServer, config: QueueReaderConfig, reader: QueueReader
) -> None:
    async def main() -> None:
        async with AsyncQueueWriter(config) as writer:
            assert await writer.wait_sent()
            await writer.push("a", "b", 1, 1)
            assert not await writer.wait_sent(timeout=0.05)
            waiting = asyncio.create_task(writer.wait_sent())
            await writer.push("a", "b", 1, 2)
            reader.start_thread()
            assert await waiting

    asyncio.run(main())


def test_a_writer_that_is_forgotten_takes_its_thread_with_it(config: QueueReaderConfig) -> None:
    async def main() -> weakref.ref[AsyncQueueWriter]:
        writer = AsyncQueueWriter(config)
        await writer.push("a", "b", 1, 1)
        return weakref.ref(writer)

    forgotten = asyncio.run(main())
    gc.collect()
    assert forgotten() is None
    asyncio.run(no_threads_left())


def test_a_loop_that_ends_in_the_middle_of_a_push_breaks_nothing(
    config: QueueReaderConfig, gate: Gate
) -> None:
    async def main() -> None:
        writer = AsyncQueueWriter(config)
        task = asyncio.create_task(writer.push("a", "b", 1, 1, reqid="1"))
        await until(gate.entered.is_set)
        task.cancel()

    asyncio.run(main())
    gate.open.set()
    asyncio.run(no_threads_left())
    assert payloads(config) == ["1"]
