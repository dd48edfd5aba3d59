"""The threads that prepare requests, and the watch over them: no request is prepared for ever.

Rendering, compiling and tokenizing have limits of their own; this one catches what slips through
them. A thread cannot be ended, so the watch answers its request, forgets it and starts another.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from llm_server.engine.embedder import Texts
from llm_server.engine.sequence import Prompt
from llm_server.engine.turns import Turns
from llm_server.errors import RequestTooComplex, ServerError
from llm_server.worker.messages import Failed, Submit, Told

logger = logging.getLogger(__name__)

Work: TypeAlias = Prompt | Texts
"""What an engine takes: the one of text, or that of embeddings."""

PREPARE_SECONDS = 30.0
"""Limit for one request; hundreds of times what a long prompt takes on a slow machine."""

HANG_SECONDS = 20.0
"""So long no thread ran Python code: one call holds the interpreter, and the process is lost."""

MAX_FORGOTTEN = 4
"""So many threads may go on in vain; one more, and the process makes room for a fresh one."""

_N_THREADS = 2  # a grammar that takes long to compile must not hold up everybody


@dataclass(eq=False, slots=True)
class _Job:
    """A request while it is being prepared."""

    id: int
    deadline: float


class PreparingThreads:
    """Calls `prepare` for what is submitted; each ends in one call of `done`, from any thread,
    unless it is cancelled first.

    `give_up` is called when too many threads are lost. With `guard`, which is for the whole
    process, the process exits when nothing in it can run Python code any more.
    """

    def __init__(
        self,
        prepare: Callable[[Submit], Work | Told],
        done: Callable[[Work | Told | Failed], None],
        *,
        seconds: float = PREPARE_SECONDS,
        give_up: Callable[[], None] = lambda: os._exit(os.EX_SOFTWARE),
        guard: bool = False,
    ) -> None:
        self._prepare = prepare
        self._done = done
        self._seconds = seconds
        self._give_up = give_up
        self._guard = guard
        self._waiting: Turns[Submit] = Turns()
        self._submitted = threading.Condition()
        self._changed = threading.Condition()
        self._jobs: set[_Job] = set()
        self._n_forgotten = 0

    def start(self) -> None:
        """Start the threads; they are daemons, and have the stack size that is set now or later."""
        for _ in range(_N_THREADS):
            self._add_thread()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def submit(self, submit: Submit) -> None:
        """Prepare this when a thread is free, and its owner's turn has come."""
        with self._submitted:
            self._waiting.add(submit.owner, submit)
            self._submitted.notify()

    def cancel(self, id: int) -> None:
        """Do not begin to prepare this; what has begun goes on. Unknown ids are fine."""
        with self._submitted:
            self._waiting.drop(lambda submit: submit.id == id)

    def _add_thread(self) -> None:
        threading.Thread(target=self._run, name="prepare", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._submitted:
                self._submitted.wait_for(lambda: self._waiting)
                submit = self._waiting.take()
            job = _Job(submit.id, time.monotonic() + self._seconds)
            with self._changed:
                self._jobs.add(job)
                self._arm()  # here, since the watch may never get to run again
                self._changed.notify()
            result = self._result(submit)
            with self._changed:
                if job not in self._jobs:  # forgotten: it is answered, and another took this place
                    self._n_forgotten -= 1
                    return
                self._jobs.remove(job)
                if not self._jobs:
                    self._disarm()  # here too, since a quick job is over before the watch sees it
                self._changed.notify()
            self._done(result)

    def _result(self, submit: Submit) -> Work | Told | Failed:
        try:
            return self._prepare(submit)
        except ServerError as error:
            return Failed(submit.id, error.info)
        except Exception:
            logger.exception("request %d could not be prepared", submit.id)
            message = "The request could not be prepared; see the server's log."
            return Failed(submit.id, ServerError(message).info)

    def _watch(self) -> None:
        """The watching thread: it runs while something is being prepared."""
        while True:
            with self._changed:
                if not self._jobs:
                    self._disarm()
                    self._changed.wait_for(lambda: self._jobs)
                self._arm()
                now = time.monotonic()
                late = [job for job in self._jobs if job.deadline <= now]
                self._jobs.difference_update(late)
                self._n_forgotten += len(late)
                lost = self._n_forgotten > MAX_FORGOTTEN
            for job in late:
                self._forget(job)
            if lost:
                logger.critical("too many requests are being prepared in vain: restarting")
                self._give_up()
            with self._changed:
                next_look = min((job.deadline for job in self._jobs), default=now) - now
                self._changed.wait(min(max(next_look, 0), HANG_SECONDS / 4))

    def _arm(self) -> None:
        """Begin the guard's time anew; its native thread ends the process without Python."""
        if self._guard:
            faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)

    def _disarm(self) -> None:
        if self._guard:
            faulthandler.cancel_dump_traceback_later()

    def _forget(self, job: _Job) -> None:
        logger.warning("request %d took too long to prepare", job.id)
        self._add_thread()
        error = RequestTooComplex(
            f"Preparing this request took longer than {self._seconds:g} s: its schemas or its "
            "messages are too complex for this model's chat template and tokenizer."
        )
        self._done(Failed(job.id, error.info))
