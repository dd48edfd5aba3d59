"""The watch over the preparing threads: late requests are answered, and others go on."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading

import pytest

from llm_server.errors import InvalidRequest
from llm_server.worker.messages import ChatRequest, Failed, Message, Submit
from llm_server.worker.preparing import MAX_FORGOTTEN, PreparingThreads

REQUEST = ChatRequest([Message("user", "Hi")])


class Desk:
    """Prepares nothing; requests of odd ids wait until they are released."""

    def __init__(self, seconds: float) -> None:
        self.results: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.released = threading.Event()
        self.gave_up = threading.Event()
        self.threads = PreparingThreads(
            self._prepare,  # type: ignore[arg-type]
            self.results.put,
            seconds=seconds,
            give_up=self.gave_up.set,
        )
        self.threads.start()

    def _prepare(self, submit: Submit) -> int:
        if submit.id == 0:
            raise InvalidRequest("no")
        if submit.id % 2:
            self.released.wait(60)
        return submit.id

    def submit(self, *ids: int) -> None:
        for id in ids:
            self.threads.submit(Submit(id, REQUEST))

    def next(self) -> object:
        return self.results.get(timeout=30)


def test_results_and_refusals_come_out() -> None:
    desk = Desk(seconds=60)
    desk.submit(2, 0)
    got = [desk.next(), desk.next()]
    assert 2 in got
    failed = next(g for g in got if isinstance(g, Failed))
    assert (failed.id, failed.error.message) == (0, "no")


def test_owners_take_turns() -> None:
    desk = Desk(seconds=60)
    desk.submit(1, 3)  # Both threads are busy.
    for id in (2, 4, 6, 8):
        desk.threads.submit(Submit(id, REQUEST, "many"))
    desk.threads.submit(Submit(10, REQUEST, "one"))
    desk.released.set()
    order = [desk.next() for _ in range(7)]
    # The two threads may pass each other by one.
    assert order.index(10) < order.index(6)


def test_what_is_cancelled_before_its_turn_is_not_prepared() -> None:
    desk = Desk(seconds=60)
    desk.submit(1, 3)  # Both threads are busy.
    desk.submit(2, 4, 6)
    for id in (2, 4, 99):
        desk.threads.cancel(id)
    desk.released.set()
    assert {desk.next() for _ in range(3)} == {1, 3, 6}
    desk.submit(8)
    assert desk.next() == 8


def test_a_late_request_is_refused_and_its_thread_replaced() -> None:
    desk = Desk(seconds=0.2)
    desk.submit(1, 3, 2)  # both threads are stuck before the third request
    results = [desk.next() for _ in range(3)]
    late = [result for result in results if isinstance(result, Failed)]
    assert {failed.id for failed in late} == {1, 3}
    for failed in late:
        assert (failed.error.status, failed.error.code) == (400, "request_too_complex")
    assert 2 in results
    desk.released.set()
    desk.submit(4)
    assert desk.next() == 4  # and nothing of the forgotten ones
    assert not desk.gave_up.is_set()


def test_too_many_lost_threads_end_the_process() -> None:
    desk = Desk(seconds=0.05)
    desk.submit(*range(1, 2 * MAX_FORGOTTEN + 3, 2))
    assert desk.gave_up.wait(30)
    desk.released.set()


QUICK = """
import queue, threading
from llm_server.worker import preparing
preparing.HANG_SECONDS = 0.5
from llm_server.worker.messages import ChatRequest, Submit
done = queue.SimpleQueue()
threads = preparing.PreparingThreads(lambda submit: submit.id, done.put, guard=True)
threads.start()
for id in range(200):
    threads.submit(Submit(id, ChatRequest([])))
    done.get()
threading.Event().wait(1.5)
print("alive")
"""


def test_a_process_with_nothing_to_prepare_lives_on() -> None:
    done = subprocess.run([sys.executable, "-c", QUICK], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"alive\n")


HANG = """
from llm_server.worker import preparing
preparing.HANG_SECONDS = 0.5
from llm_server.worker.messages import ChatRequest, Submit
a, b = [1], [1]
for _ in range(60):
    a, b = [a, a], [b, b]
threads = preparing.PreparingThreads(lambda submit: a == b, print, guard=True)
threads.start()
threads.submit(Submit(1, ChatRequest([])))
import time
time.sleep(30)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals and exits as Unix has them")
def test_a_call_that_holds_the_interpreter_ends_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", HANG], capture_output=True, timeout=60)
    assert done.returncode == 1
    assert b"Timeout" in done.stderr
