"""Looks on all the time: what the health check says, and what the daemon's log says was stored."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.daemon import Daemon

    from faults.world import World

_EVERY_SECONDS = 0.25


class Sample(NamedTuple):
    """What the health check said at `at` (monotonic); `is_green` is None when there was no answer."""

    at: float
    is_green: bool | None
    alarms: tuple[str, ...]


class Taken(NamedTuple):
    """A snapshot that was reported as taken: its state was captured between these times (monotonic)."""

    database: str
    store: str
    id: str
    after: float
    before: float


class Watch:
    """A thread that looks on until it is closed."""

    def __init__(self, world: World) -> None:
        self.samples: list[Sample] = []
        self._world = world
        self._daemon: Daemon | None = None
        self._position = 0
        self._log = (world.home / "daemon.log").open("a")
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._is_over.set()
        self._thread.join()
        self._log.close()

    def wait_for(self, condition: Callable[[Sample], bool], *, seconds: float) -> bool:
        """Wait until a new sample fulfils `condition`; whether one did in time."""
        give_up_at = time.monotonic() + seconds
        seen = len(self.samples)
        while time.monotonic() < give_up_at:
            if any(condition(sample) for sample in self.samples[seen:]):
                return True
            self._is_over.wait(_EVERY_SECONDS)
        return False

    def _look_on(self) -> None:
        while not self._is_over.wait(_EVERY_SECONDS):
            self._world.look_for_death()
            self._follow_log()
            self.samples.append(self._sample())

    def _sample(self) -> Sample:
        at = time.monotonic()
        if self._world.daemon is not None:
            connection = HTTPConnection("127.0.0.1", self._world.site.port, timeout=5)
            try:
                connection.request("GET", "/healthz")
                answer = connection.getresponse()
                alarms = json.loads(answer.read())["alarms"]
                shown = tuple(f"{each['kind']} {each['database'] or ''} {each['store'] or ''}" for each in alarms)
                return Sample(at, answer.status == 200, shown)
            except (OSError, HTTPException, ValueError):
                pass
            finally:
                connection.close()
        return Sample(at, None, ())

    def _follow_log(self) -> None:
        daemon = self._world.daemon
        if daemon is not self._daemon:
            self._take_lines()  # the last words of the one before
            self._daemon, self._position = daemon, 0
        self._take_lines()

    def _take_lines(self) -> None:
        if self._daemon is None:
            return
        lines = self._daemon.lines[self._position :]
        self._position += len(lines)
        self._log.writelines(lines)
        self._log.flush()
        for line in lines:
            with suppress(ValueError):
                event = json.loads(line)
                if event["event"] == "snapshot" and event["outcome"] == "created":
                    now = time.monotonic()
                    # Between its end and this line: one look.
                    began = now - event["duration_seconds"] - 1.0
                    self._world.taken.append(Taken(event["database"], event["store"], event["id"], began, now))
