import asyncio
import threading

import pytest

from agent.runtimes.worker import Worker


@pytest.fixture
def gate() -> threading.Event:
    return threading.Event()


async def test_jobs_run_in_order_in_a_named_thread() -> None:
    worker = Worker("tidy")
    names: list[str] = []
    await asyncio.gather(*(worker.run(lambda: names.append(threading.current_thread().name)) for _ in range(3)))
    assert names == ["tidy_0"] * 3
    await worker.close()


async def test_a_job_is_done_to_its_end_also_when_its_caller_is_cancelled(gate: threading.Event) -> None:
    worker = Worker("w")
    done: list[str] = []

    def job(name: str) -> None:
        gate.wait(10)
        done.append(name)

    callers = [asyncio.create_task(worker.run(job, name)) for name in ("under way", "queued")]
    await asyncio.sleep(0)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    assert all(caller.cancelled() for caller in callers)
    gate.set()
    await worker.close()
    assert done == ["under way", "queued"]


async def test_the_failure_of_an_abandoned_job_is_no_noise(gate: threading.Event) -> None:
    worker = Worker("w")
    noise: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))

    def fail() -> None:
        gate.wait(10)
        raise OSError

    caller = asyncio.create_task(worker.run(fail))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    gate.set()
    await worker.close()
    await asyncio.sleep(0)
    assert noise == []


async def test_a_failure_reaches_the_caller() -> None:
    worker = Worker("w")
    with pytest.raises(ZeroDivisionError):
        await worker.run(divmod, 1, 0)
    await worker.close()
