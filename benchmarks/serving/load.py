"""Clients that load a method, and what they see."""

from __future__ import annotations

import os
import random
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from crs_fast.serve import Busy

from .methods import Answered, Method
from .seekers import Conversation, conversations


class Record:
    """What the clients of one run saw."""

    def __init__(self, is_right: Callable[[Answered], bool]) -> None:
        self.seconds: list[float] = []
        self.wrong_items = self.busy = 0
        self.failures: list[str] = []
        self._is_right = is_right
        self._lock = threading.Lock()

    def turn(self, method: Method, conversation: Conversation) -> bool:
        """Take one turn. False if there was no answer."""
        began = time.monotonic()
        try:
            answer = method(conversation)
        except Busy:
            with self._lock:
                self.busy += 1
            return False
        except Exception as error:
            with self._lock:
                self.failures.append(f"{type(error).__name__}: {error}")
            return False
        seconds = time.monotonic() - began
        conversation.hear(answer.text, answer.item_ids)
        with self._lock:
            self.seconds.append(seconds)
            self.wrong_items += answer.invalid_items + (not self._is_right(answer))
        return True

    def row(self, seconds: float, cpu_seconds: float) -> dict[str, Any]:
        """The run as figures."""
        ordered = sorted(self.seconds)
        turns = len(ordered)

        def percentile(percent: int) -> float:
            at = min(turns - 1, turns * percent // 100)
            return round(1000 * ordered[at], 1) if turns else float("nan")

        return {
            "turns": turns,
            "seconds": round(seconds, 1),
            "turns_per_second": round(turns / seconds, 2),
            "cpu_ms_per_turn": round(1000 * cpu_seconds / max(1, turns), 2),
            **{f"p{percent}_ms": percentile(percent) for percent in (50, 95, 99)},
            "wrong_items": self.wrong_items,
            "busy": self.busy,
            "failures": len(self.failures),
            "first_failure": self.failures[0] if self.failures else None,
        }


def closed_loop(method: Method, record: Record, clients: int, seconds: float) -> dict[str, Any]:
    """So many conversations at once: each client takes the next turn when it has the answer."""
    until = time.monotonic() + seconds

    def client(number: int) -> None:
        for conversation in conversations(number, clients):
            while conversation.say():
                if time.monotonic() > until or not record.turn(method, conversation):
                    break
            if time.monotonic() > until:
                return

    return _timed(record, [lambda n=n: client(n) for n in range(clients)])


def open_loop(method: Method, record: Record, rate: float, seconds: float) -> dict[str, Any]:
    """Turns that begin at random times, `rate` a second, whether or not others have ended. Each is
    the next turn of a conversation that waits for none."""
    until, lock = time.monotonic() + seconds, threading.Lock()
    sources = conversations(0, 1)
    idle: list[Conversation] = []

    def one() -> None:
        with lock:
            conversation = idle.pop(0) if len(idle) > 64 else next(sources)
        if conversation.say() and record.turn(method, conversation):
            with lock:
                idle.append(conversation)

    def arrivals() -> None:
        draw, threads, due = random.Random(0), [], time.monotonic()
        while due < until:
            time.sleep(max(0.0, due - time.monotonic()))
            threads.append(threading.Thread(target=one))
            threads[-1].start()
            due += draw.expovariate(rate)
        for thread in threads:
            thread.join()

    return _timed(record, [arrivals])


def _timed(record: Record, clients: list[Callable[[], None]]) -> dict[str, Any]:
    threads = [threading.Thread(target=client) for client in clients]
    began, cpu = time.monotonic(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return record.row(time.monotonic() - began, time.process_time() - cpu)


@contextmanager
def every(seconds: float, action: Callable[[], None]) -> Iterator[None]:
    """Do something again and again beside the block; never where `seconds` is 0."""
    over = threading.Event()

    def again() -> None:
        while seconds and not over.wait(seconds):
            action()

    thread = threading.Thread(target=again)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Memory:
    """Resident memory of this process in MiB, noted whenever `note` is called."""

    def __init__(self) -> None:
        self.noted: list[float] = []

    def note(self) -> None:
        """Note what it is now."""
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        self.noted.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)

    def row(self) -> dict[str, float]:
        """After the first quarter, when all is warm, and at the end."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if not self.noted:
            return {"peak_mib": round(peak)}
        return {
            "warm_mib": round(self.noted[len(self.noted) // 4]),
            "end_mib": round(self.noted[-1]),
            "peak_mib": round(peak),
        }
