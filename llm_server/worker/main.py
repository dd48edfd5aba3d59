"""The worker process: `python -m llm_server.worker.main`, spawned by `worker/client`.

Three threads: one reads commands, one prepares prompts, and the main one steps the engine and
writes frames. All state of a request lives in the main thread's engine. Knows no HTTP.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from typing import BinaryIO

from llm_server.engine.engine import Engine
from llm_server.engine.sequence import Prompt
from llm_server.errors import ServerError, ShuttingDown
from llm_server.worker import sandbox
from llm_server.worker.frames import decode_command, encode_events, read_frame, write_frame
from llm_server.worker.load import load
from llm_server.worker.messages import (
    Cancel,
    Command,
    Event,
    Failed,
    Load,
    LoadFailed,
    LoadProgress,
    Stop,
    Submit,
)
from llm_server.worker.prepare import STACK_BYTES, Preparer

logger = logging.getLogger(__name__)

_PROGRESS_S = 0.2  # a load reports at most this often


class Worker:
    """The main thread's side: what arrives in `inbox` goes to the engine, its events go out."""

    def __init__(self, engine: Engine, preparer: Preparer, out: BinaryIO) -> None:
        self._engine = engine
        self._preparer = preparer
        self._out = out
        self._submitted: queue.SimpleQueue[Submit] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[Command | Prompt | Failed] = queue.SimpleQueue()
        self._preparing: set[int] = set()
        self._stopping = False

    def receive(self, source: BinaryIO) -> None:
        """The reading thread: commands until end of file, which means that the server is gone."""
        while (frame := read_frame(source)) is not None:
            self._inbox.put(decode_command(frame))
        # Nobody is left to answer, and the main thread may be deep in a long computation.
        os._exit(0)

    def prepare(self) -> None:
        """The preparing thread: one prompt after the other, failures as `Failed`."""
        while True:
            submit = self._submitted.get()
            try:
                self._inbox.put(self._preparer.prepare(submit.id, submit.request))
            except ServerError as error:
                self._inbox.put(Failed(submit.id, error.info))
            except Exception:
                logger.exception("request %d could not be prepared", submit.id)
                info = ServerError("The request could not be prepared; see the server's log.").info
                self._inbox.put(Failed(submit.id, info))

    def run(self) -> None:
        """Step until told to stop."""
        while not self._stopping:
            events: list[Event] = []
            for arrived in self._arrivals():
                events += self._handle(arrived)
            events += self._engine.step()
            self._write(events)
            if self._engine.idle:
                self._engine.check()
        self._write(list(self._engine.fail_all(ShuttingDown("The server is shutting down."))))

    def _arrivals(self) -> Iterator[Command | Prompt | Failed]:
        """Everything that has arrived; waits for something when there is nothing else to do."""
        if self._engine.idle:
            yield self._inbox.get()
        while True:
            try:
                yield self._inbox.get_nowait()
            except queue.Empty:
                return

    def _handle(self, arrived: Command | Prompt | Failed) -> list[Event]:
        match arrived:
            case Submit():
                self._preparing.add(arrived.id)
                self._submitted.put(arrived)
            case Prompt():
                if arrived.id in self._preparing:
                    self._preparing.discard(arrived.id)
                    self._engine.submit(arrived)
            case Failed():
                if arrived.id in self._preparing:
                    self._preparing.discard(arrived.id)
                    return [arrived]
            case Cancel():
                self._preparing.discard(arrived.id)
                self._engine.cancel(arrived.id)
            case Stop():
                self._stopping = True
            case Load():
                raise RuntimeError("a worker loads one model, once")
        return []

    def _write(self, events: list[Event]) -> None:
        if events:
            write_frame(self._out, encode_events(events))


def main() -> None:
    """Be a worker on stdin and stdout."""
    sandbox.enter()
    source, out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # Whatever native code prints must not corrupt the frames.
    os.dup2(2, 1)
    first = read_frame(source)
    if first is None:
        return
    command = decode_command(first)
    if not isinstance(command, Load):
        sys.exit("the first command must be Load")
    logging.basicConfig(
        level=command.log_level.upper(),
        format=f"%(asctime)s %(levelname)s worker[{os.getpid()}] %(name)s: %(message)s",
    )
    try:
        context, loaded = load(command, _Reporter(out))
        preparer = Preparer(context)
    except ServerError as error:
        write_frame(out, encode_events([LoadFailed(error.info)]))
        return
    worker = Worker(Engine(context, context.model.vocab), preparer, out)
    threading.Thread(target=worker.receive, args=(source,), name="commands", daemon=True).start()
    threading.stack_size(STACK_BYTES)
    threading.Thread(target=worker.prepare, name="prepare", daemon=True).start()
    write_frame(out, encode_events([loaded]))
    worker.run()


class _Reporter:
    """Sends `LoadProgress`, not too often."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._last = 0.0

    def __call__(self, fraction: float) -> None:
        now = time.monotonic()
        if now - self._last >= _PROGRESS_S:
            self._last = now
            write_frame(self._out, encode_events([LoadProgress(fraction)]))


if __name__ == "__main__":
    main()
