"""The one thread that computes, its queue, and how a computation is stopped."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")

USUAL = 0.1
"""Seconds of a computation, until some were measured."""

WEIGHT = 0.2
"""Of the newest computation in the mean of their seconds."""


class Busy(Exception):
    """The queue is full.

    Args:
        seconds: after which it will probably have moved on.
    """

    def __init__(self, seconds: int) -> None:
        super().__init__(f"too many requests are waiting; try again in {seconds} s")
        self.seconds = seconds


class Cancelled(Exception):
    """Nobody waits for the answer any more."""


class TooSlow(Exception):
    """A computation took longer than it may."""


class Ticket:
    """One computation's right to go on, which it asks for between network calls.

    Args:
        seconds: that it may take, counted from :meth:`begin`.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._until = math.inf
        self._cancelled = False

    def begin(self) -> None:
        """Its turn has come."""
        self._until = time.monotonic() + self.seconds
        self.check()

    def cancel(self) -> None:
        """End it at its next :meth:`check`, from any thread."""
        self._cancelled = True

    def check(self, state: Any = None) -> None:
        """Go on, or not; takes the place of a callback of ``Model.sample``.

        Raises:
            Cancelled: the client has left, or the server stops.
            TooSlow: it has taken its time.
        """
        if self._cancelled:
            raise Cancelled
        if time.monotonic() > self._until:
            raise TooSlow(
                f"this took more than {self.seconds:g} s, which is the limit; "
                "ask for fewer samples or steps"
            )


@dataclass(frozen=True)
class Turn(Generic[Result]):
    """A computation that is done.

    Args:
        result: of it.
        ahead: number of computations that were there before it, one of which was running.
        waited: seconds until it began.
    """

    result: Result
    ahead: int
    waited: float


class Worker:
    """One thread, and the computations that wait for it; used from one event loop.

    Args:
        queue: the most computations that wait, beside the one that runs.
        seconds: that each may take.
    """

    def __init__(self, queue: int, seconds: float) -> None:
        self.queue, self.seconds = queue, seconds
        self.thread = ThreadPoolExecutor(1, "fewstep-compute")
        self._open: set[Ticket] = set()
        self._first: list[Ticket] = []
        self._usual = USUAL

    @property
    def open(self) -> int:
        """How many computations run or wait."""
        return len(self._open)

    def begin_with(self, work: Callable[[Ticket], None]) -> None:
        """Do this before what requests ask for; it takes no place in the queue."""
        self._first.append(ticket := Ticket(self.seconds))
        self.thread.submit(work, ticket)

    async def run(
        self,
        work: Callable[[Ticket], Result],
        gone: Callable[[], Coroutine[Any, Any, None]],
    ) -> Turn[Result]:
        """The result of ``work``, when its turn has come.

        Args:
            work: is called in the thread with a ticket, which it checks between network calls.
            gone: returns when nobody waits for the result any more.

        Raises:
            Busy: the queue is full.
            Cancelled: nobody waits any more.
            TooSlow: it took too long.
        """
        ahead = len(self._open)
        if ahead > self.queue:
            raise Busy(max(1, math.ceil(ahead * self._usual)))
        loop, asked = asyncio.get_running_loop(), time.monotonic()
        ticket = Ticket(self.seconds)
        self._open.add(ticket)
        future = self.thread.submit(self._timed, work, ticket, asked)
        future.add_done_callback(lambda done: self._ended(loop, ticket, done))
        left = loop.create_task(gone())
        result = asyncio.wrap_future(future)
        try:
            await asyncio.wait({result, left}, return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                raise Cancelled
            value, waited = result.result()
            return Turn(value, ahead, waited)
        finally:
            # Also where the server itself gives up this request.
            ticket.cancel()
            future.cancel()
            left.cancel()

    def _timed(
        self, work: Callable[[Ticket], Result], ticket: Ticket, asked: float
    ) -> tuple[Result, float]:
        began = time.monotonic()
        ticket.begin()
        result = work(ticket)
        self._usual += WEIGHT * (time.monotonic() - began - self._usual)
        return result, began - asked

    def _ended(self, loop: asyncio.AbstractEventLoop, ticket: Ticket, done: Future[Any]) -> None:
        """A computation is over: its place is free, and nobody has to have seen its error."""
        if not done.cancelled():
            done.exception()
        with suppress(RuntimeError):  # the loop is closed: the server has stopped
            loop.call_soon_threadsafe(self._open.discard, ticket)

    def stop(self) -> None:
        """End all computations between two network calls, and begin no other."""
        for ticket in [*self._open, *self._first]:
            ticket.cancel()
        self.thread.shutdown(wait=False, cancel_futures=True)
