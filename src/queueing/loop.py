"""The queue before one device: in virtual time, in which batches take what they really took, or in real time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .policy import Choose

Floats = NDArray[np.float64]
Serve = Callable[[Sequence[int]], float]
"""Computes the batch of the prompts with these numbers, and returns the seconds it took until their first tokens."""


@dataclass(frozen=True)
class Served:
    """Every prompt served.

    Attributes:
        arrivals_s: float64 [n], when each prompt came, ascending seconds.
        batches: numbers of each batch's prompts, in the order in which they were served.
        starts_s, ends_s: float64 [batches], when each began, and when the first tokens of all of it were there.
        within: served by an engine with a queue and batches of its own, which nobody sees: each prompt stands for
            itself, from its arrival on.
    """

    arrivals_s: Floats
    batches: list[list[int]] = field(default_factory=list)
    starts_s: list[float] = field(default_factory=list)
    ends_s: list[float] = field(default_factory=list)
    within: bool = False

    def add(self, batch: Sequence[int], start_s: float, end_s: float) -> None:
        """One more batch."""
        self.batches.append(list(batch))
        self.starts_s.append(start_s)
        self.ends_s.append(end_s)

    @property
    def batch_of(self) -> NDArray[np.int64]:
        """The batch that each prompt went into, int64 [n]."""
        found = np.zeros(len(self.arrivals_s), dtype=np.int64)
        for number, members in enumerate(self.batches):
            found[members] = number
        return found


def virtual(arrivals_s: Floats, choose: Choose, serve: Serve) -> Served:
    """A discrete-event loop: the device is busy for as long as each batch takes, and idle time costs none.

    Args:
        arrivals_s: float64 [n], ascending seconds.
    """
    served, waiting, arrived, now_s = Served(arrivals_s), list[int](), 0, 0.0
    times = arrivals_s.tolist()
    while waiting or arrived < len(times):
        if not waiting:
            now_s = max(now_s, times[arrived])
        while arrived < len(times) and times[arrived] <= now_s:
            waiting.append(arrived)
            arrived += 1
        now_s = _serve_one(served, waiting, choose, serve, now_s)
    return served


def _serve_one(served: Served, waiting: list[int], choose: Choose, serve: Serve, now_s: float) -> float:
    """Serve the next batch and take it out of the queue; when it ended, in seconds."""
    chosen = choose(waiting, now_s)
    end_s = now_s + serve(chosen)
    served.add(chosen, now_s, end_s)
    _take_out(waiting, chosen)
    return end_s


def _take_out(waiting: list[int], chosen: Sequence[int]) -> None:
    if waiting[: len(chosen)] == list(chosen):  # as first come, first served has it
        del waiting[: len(chosen)]
    else:
        gone = set(chosen)
        waiting[:] = [number for number in waiting if number not in gone]


def by_engine(arrivals_s: Floats, first_tokens_s: Sequence[float]) -> Served:
    """What a serving engine did with the prompts, by when it gave the first token of each."""
    each = [[number] for number in range(len(arrivals_s))]
    return Served(arrivals_s, each, arrivals_s.tolist(), list(first_tokens_s), within=True)


def real(arrivals_s: Floats, choose: Choose, serve: Serve) -> Served:
    """The same in real time: one thread sleeps until each prompt is due and puts it into the queue, this one serves.

    A batch ends when the clock says so, which holds all that the virtual clock leaves out: choosing, and threads.
    """
    served, waiting, due = Served(arrivals_s), list[int](), threading.Condition()
    failed: list[BaseException] = []
    began = time.perf_counter()

    def arrive() -> None:
        try:
            for number, at_s in enumerate(arrivals_s.tolist()):
                time.sleep(max(0.0, began + at_s - time.perf_counter()))
                with due:
                    waiting.append(number)
                    due.notify()
        except BaseException as error:  # nobody would be left to wake the other thread
            with due:
                failed.append(error)
                due.notify()

    thread = threading.Thread(target=arrive, name="arrivals", daemon=True)
    thread.start()
    left = len(arrivals_s)
    while left:
        with due:
            due.wait_for(lambda: bool(waiting or failed))
            if failed:
                raise RuntimeError(f"prompts stopped arriving ({failed[0]})")
            start_s = time.perf_counter() - began
            chosen = choose(list(waiting), start_s)
            _take_out(waiting, chosen)
        serve(chosen)
        served.add(chosen, start_s, time.perf_counter() - began)
        left -= len(chosen)
    thread.join()
    return served
