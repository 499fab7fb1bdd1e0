"""`backupd run` as a process of its own: its log as it comes, signals, and its health from every side."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import suppress
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from harness.killing import kill

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from harness.cli import Finished
    from harness.site import Site

PATIENCE_SECONDS = 60.0

Event = dict[str, Any]


class Answer(NamedTuple):
    """What the daemon answered over HTTP."""

    code: int
    text: str

    @property
    def document(self) -> Any:
        """The JSON in it."""
        return json.loads(self.text)


class Daemon:
    """One process of the daemon. What it logs is collected from its start on."""

    def __init__(self, site: Site, process: subprocess.Popen[str]) -> None:
        self.site = site
        self.process = process
        self.lines: list[str] = []
        self.stderr = ""
        self._logged = threading.Condition()
        self._readers = [threading.Thread(target=each) for each in (self._read_log, self._read_errors)]
        for reader in self._readers:
            reader.start()

    @property
    def events(self) -> list[Event]:
        """Everything that was logged; each line has to be an object."""
        return [json.loads(line) for line in [*self.lines]]

    @property
    def position(self) -> int:
        """The current end of the log, to wait for what comes after."""
        return len(self.lines)

    def wait_for(
        self, event: str, *, after: int = 0, patience_seconds: float = PATIENCE_SECONDS, **values: object
    ) -> Event:
        """The first event that begins with `event` and has these values; waits until it is logged."""
        give_up_at = time.monotonic() + patience_seconds
        with self._logged:
            while True:
                if found := self.events_of(event, after=after, **values):
                    return found[0]
                is_over = not self._readers[0].is_alive()
                assert not is_over, f"it ended without {event!r} {values}:\n{self._output()}"
                assert time.monotonic() < give_up_at, f"no {event!r} {values} in time:\n{self._output()}"
                self._logged.wait(1.0)

    def events_of(self, event: str, *, after: int = 0, **values: object) -> list[Event]:
        """All events so far that begin with `event` and have these values."""
        return [
            found
            for found in self.events[after:]
            if found["event"].startswith(event) and all(found.get(key) == values[key] for key in values)
        ]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the daemon alone."""
        os.kill(self.process.pid, number)

    def reload(self) -> int:
        """SIGHUP; returns the position in the log from which its consequences stand, once it was taken."""
        position = self.position
        self.signal(signal.SIGHUP)
        self.wait_for("the configuration was reloaded", after=position)
        return position

    def run_again(self, *names: str) -> int:
        """Have a round now that takes up these databases (all). Returns the position in the log as `reload` does."""
        self.site.make_due(*names)
        return self.reload()

    def drill_again(self) -> int:
        """Have a drill now. Returns the position in the log as `reload` does."""
        self.site.make_drills_due()
        return self.reload()

    def stop(self, *, within_seconds: float = PATIENCE_SECONDS) -> float:
        """SIGTERM; it has to end with exit code 0. Gives the seconds that it took."""
        began = time.monotonic()
        self.signal(signal.SIGTERM)
        code = self.process.wait(timeout=within_seconds)
        taken = time.monotonic() - began
        self._finish_reading()
        assert code == 0, self._output()
        return taken

    def kill(self) -> None:
        """SIGKILL, of every process of it; also when it has ended."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._finish_reading()
        kill(self.process)

    def _finish_reading(self) -> None:
        for reader in self._readers:
            reader.join(PATIENCE_SECONDS)

    def _read_log(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._logged:
                self.lines.append(line)
                self._logged.notify_all()
        with self._logged:
            self._logged.notify_all()

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.stderr = self.process.stderr.read()

    def _output(self) -> str:
        return "".join([*self.lines, self.stderr])

    # What others see of it.

    def ask(
        self,
        path: str,
        *,
        body: str | None = None,
        token: str | None = None,
        content_type: str = "application/x-www-form-urlencoded",
        **headers: str,
    ) -> Answer:
        """Send one request, GET without a `body` and POST with one, and return its answer."""
        connection = HTTPConnection("127.0.0.1", self.site.port, timeout=PATIENCE_SECONDS)
        given = dict(headers) if body is None else {"Content-Type": content_type, **headers}
        if token is not None:
            given["Authorization"] = f"Bearer {token}"
        try:
            connection.request("GET" if body is None else "POST", path, body, given)
            response = connection.getresponse()
            return Answer(response.status, response.read().decode())
        finally:
            connection.close()

    def metric(self, name: str, **labels: str) -> float | None:
        """A sample of /metrics with these labels at least; None when there is none."""
        answer = self.ask("/metrics")
        assert answer.code == 200
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return sample.value
        return None

    def require_red(self, kind: str, *, database: str | None = None) -> Finished:
        """Wait until an alarm of `kind` is on; then everybody has to say so. Gives what the check said."""
        self._wait_for_alarms(lambda alarms: (kind, database) in alarms)
        assert self.ask("/healthz").code == 503
        labels = {} if database is None else {"database": database}
        assert self.metric("backupd_alarm", kind=kind, **labels) == 1.0
        assert self.metric("backupd_healthy") == 0.0
        checked = self.site.check()
        assert (checked.code, len(checked.lines)) == (1, 1), checked
        return checked

    def require_green(self) -> Finished:
        """Wait until no alarm is on; then everybody has to say so."""
        self._wait_for_alarms(lambda alarms: not alarms)
        assert self.ask("/healthz").code == 200
        assert self.metric("backupd_healthy") == 1.0
        checked = self.site.check()
        assert (checked.code, len(checked.lines)) == (0, 1), checked
        assert checked.stdout.startswith("ok: ")
        return checked

    def _wait_for_alarms(self, is_so: Callable[[set[tuple[str, str | None]]], bool]) -> None:
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while not is_so(alarms := self.alarms()):
            assert time.monotonic() < give_up_at, f"{alarms}:\n{self._output()}"
            time.sleep(0.05)

    def alarms(self) -> set[tuple[str, str | None]]:
        """Kind and database of every alarm that is on, as /healthz tells it."""
        return {(each["kind"], each["database"]) for each in self.ask("/healthz").document["alarms"]}


def wait_until(condition: Callable[[], object], *, patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Wait for `condition`, but not for ever; it may cost something."""
    give_up_at = time.monotonic() + patience_seconds
    while not condition():
        assert time.monotonic() < give_up_at, "it did not happen"
        time.sleep(0.02)
