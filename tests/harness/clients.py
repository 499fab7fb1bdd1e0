"""Clients of the web service that write and read as long as they are let, and keep account of every answer."""

from __future__ import annotations

import itertools
import json
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING

from harness.command_line import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.webapp import WebService

_IMPATIENCE_SECONDS = 30
_THINKING_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Answer:
    """A request that was answered with success: which generation of the content it met, and what it took.

    `connections` is how many the worker has opened to its database since it started.
    """

    generation: str
    worker: int
    connections: int
    seconds: float


@dataclass(slots=True)
class Account:
    """All answers. `writes` are by number; `failures` are answers without success, and connections that broke."""

    writes: dict[int, Answer] = field(default_factory=dict)
    reads: list[Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def answers(self) -> list[Answer]:
        return [*self.writes.values(), *self.reads]

    def acknowledged(self, generation: str) -> dict[int, str]:
        """Numbers that went into `generation`, each with it."""
        return {number: generation for number, answer in self.writes.items() if answer.generation == generation}

    def wait_for_more(self, generation: str, requests: int) -> None:
        """Return when so many writes, and so many reads, were answered from `generation` since now. None may fail."""
        seen_writes, seen_reads = len(self.writes), len(self.reads)

        def is_enough() -> bool:
            new = [*self.writes.values()][seen_writes:], self.reads[seen_reads:]
            return all(sum(answer.generation == generation for answer in kind) >= requests for kind in new)

        wait_until(lambda: self.failures or is_enough())
        assert self.failures == []


@contextmanager
def busy_clients(service: WebService, *, writers: int = 2, readers: int = 2) -> Iterator[Account]:
    """Clients at work until the block ends; every request has been answered then."""
    account, is_over = Account(), threading.Event()
    numbers = itertools.count(1)
    threads = [threading.Thread(target=_write, args=(service, account, is_over, numbers)) for _ in range(writers)]
    threads += [threading.Thread(target=_read, args=(service, account, is_over)) for _ in range(readers)]
    for thread in threads:
        thread.start()
    try:
        yield account
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def _write(service: WebService, account: Account, is_over: threading.Event, numbers: Iterator[int]) -> None:
    while not is_over.wait(_THINKING_SECONDS):
        number = next(numbers)
        if (answer := _ask(service, account, "POST", f"/bookings/{number}")) is not None:
            account.writes[number] = answer


def _read(service: WebService, account: Account, is_over: threading.Event) -> None:
    while not is_over.wait(_THINKING_SECONDS):
        if (answer := _ask(service, account, "GET", "/generation")) is not None:
            account.reads.append(answer)


def _ask(service: WebService, account: Account, method: str, path: str) -> Answer | None:
    """Send one request on a connection of its own, so that every worker gets some."""
    started = time.monotonic()
    try:
        with closing(HTTPConnection("127.0.0.1", service.port, timeout=_IMPATIENCE_SECONDS)) as connection:
            connection.request(method, path)
            response = connection.getresponse()
            body = response.read().decode()
    except (OSError, HTTPException) as error:
        account.failures.append(f"{method} {path}: {error!r}")
        return None
    seconds = time.monotonic() - started
    if response.status != 200:
        account.failures.append(f"{method} {path}: {response.status} after {seconds:.2f} s: {body}")
        return None
    return Answer(**json.loads(body), seconds=seconds)
