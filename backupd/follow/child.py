"""The following process: one for all databases. It reads requests from stdin, and reports events on stdout.

Both are lines of JSON. The requests:

follow      a database, with its spool: from now on its commits become segments there
forget      a database
mark        how far has it come? The answer, when all up to there is in segments, has the `token` of the request
anchor      a snapshot was taken between two marks
distrust    the commits of a window have turned out wrong: end it

The end of stdin means that the parent stops or is gone: what was committed by now is put into segments, and the process
ends.

Only `process.FollowerProcess` starts it.
"""

from __future__ import annotations

import heapq
import json
import math
import os
import select
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from backupd.concurrency import start_thread
from backupd.config import Database
from backupd.errors import LimitReachedError
from backupd.follow.chain import Chain, Mark, WindowBegan, WindowEnded, Written, write_at_once
from backupd.follow.spool import Cut
from backupd.format import SnapshotId
from backupd.format.segment import Anchor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_READ_BYTES = 1 << 16
_LONGEST_WAIT_SECONDS = 60.0
_LONG_PAUSE_SECONDS = 0.5
_MOST_WAITING_BYTES = 64 << 20
_TOGETHER_SECONDS = 0.05


class _Following:
    """The chains of all databases, each polled when its pause is over."""

    def __init__(self) -> None:
        self.writer = _Writer()
        self._chains: dict[str, Chain] = {}
        self._due: list[tuple[float, str]] = []
        self._marks: dict[str, list[tuple[int, Mark | None]]] = {}
        """By name, with the tokens of their requests, the marks that wait for what is written: the log is read on."""

    def obey(self, request: dict[str, Any]) -> None:
        """Do what one line of stdin asks for."""
        name = request["name"]
        chain = self._chains.get(name)
        match request["do"]:
            case "follow":
                self._forget(name)
                within = request["within"]
                database = Database(name, Path(request["path"]), None if within is None else Path(within))
                self._chains[name] = new = Chain(
                    database,
                    Path(request["spool"]),
                    interval=request["interval"],
                    most_bytes=request["most_bytes"],
                    write=partial(self.writer.write, name),
                    is_crowded=self.writer.is_crowded,
                )
                _report(name, new.found())
                heapq.heappush(self._due, (time.monotonic(), name))
            case "forget":
                self._forget(name)
            case "mark":
                found = None
                for each in () if chain is None else chain.mark():
                    if isinstance(each, Mark):
                        found = each
                    else:
                        _report(name, [each])
                self._marks.setdefault(name, []).append((request["token"], found))
                self._answer_marks(name)
            case "anchor":
                anchor = Anchor(snapshot=SnapshotId(request["snapshot"]), after=request["after"], by=request["by"])
                if chain is not None:
                    chain.anchor(SnapshotId(request["window"]), anchor)
            case "distrust":
                if chain is not None:
                    _report(name, chain.distrust(SnapshotId(request["window"])))

    def poll(self) -> float:
        """Poll each database that is due once; return after how many seconds the next one is.

        One that takes long is due again at once, and must keep neither the others nor requests waiting.
        """
        now, due = time.monotonic(), []
        while self._due and self._due[0][0] <= now:
            due.append(heapq.heappop(self._due)[1])
        for name in due:
            chain = self._chains.get(name)
            if chain is not None:
                _report(name, chain.poll())
                self._answer_marks(name)
                heapq.heappush(self._due, (_due_at(chain.pause), name))
        return max(0.0, self._due[0][0] - time.monotonic()) if self._due else _LONGEST_WAIT_SECONDS

    def collect(self) -> None:
        """Report what was put into the spools meanwhile."""
        for name in self.writer.done():
            chain = self._chains.get(name)
            if chain is not None:
                _report(name, chain.collect())
                self._answer_marks(name)

    def _answer_marks(self, name: str) -> None:
        """Answer the marks up to which all commits are in segments, or whose window is over."""
        for token, mark in self._marks.pop(name, ()):
            chain = self._chains.get(name)
            is_cut = None if chain is None or mark is None else chain.is_cut(mark)
            if chain is not None and mark is not None and is_cut is False:
                _report(name, chain.collect())  # it is written already where there is no thread for that
                is_cut = chain.is_cut(mark)
            if is_cut is False:
                self._marks.setdefault(name, []).append((token, mark))
                continue
            found = {} if mark is None or not is_cut else mark._asdict()
            _emit("marked", name=name, token=token, **found)

    def end(self) -> None:
        """Put everything that was committed into segments."""
        for name in [*self._chains]:
            self._forget(name)

    def _forget(self, name: str) -> None:
        chain = self._chains.pop(name, None)
        if chain is not None:
            _report(name, chain.poll())
            _report(name, chain.cut())
            chain.close()
            self._answer_marks(name)
            self._due = [(at, each) for at, each in self._due if each != name]
            heapq.heapify(self._due)


class _Writer:
    """Makes and writes the segments of all databases in one thread, so that their logs are read meanwhile.

    While commits come quickly, an application may write its log over in the time that a segment takes.
    """

    def __init__(self) -> None:
        self._waiting: SimpleQueue[tuple[str, Callable[[], Written], int, Future[Written]]] = SimpleQueue()
        self._lock = threading.Lock()
        self._waiting_bytes = 0
        self._done: deque[str] = deque()
        self.descriptor, self._signal = os.pipe()
        """Can be read when there is something in `done`."""
        self._has_thread = True
        try:
            start_thread(self._run, name="segments")
        except LimitReachedError:
            self._has_thread = False

    def write(self, name: str, call: Callable[[], Written], size_bytes: int) -> Future[Written]:
        """Make `call` after those before it; at once, when the system has given no thread."""
        if not self._has_thread:
            return write_at_once(call, size_bytes)
        written: Future[Written] = Future()
        with self._lock:
            self._waiting_bytes += size_bytes
        self._waiting.put((name, call, size_bytes, written))
        return written

    def is_crowded(self) -> bool:
        """Whether as many bytes of images wait as memory is meant for, those of all databases together."""
        return self._waiting_bytes >= _MOST_WAITING_BYTES

    def _run(self) -> None:
        while True:
            name, call, size_bytes, written = self._waiting.get()
            try:
                written.set_result(call())
            except BaseException as error:  # noqa: BLE001  (raised again where the result is asked for)
                written.set_exception(error)
            with self._lock:
                self._waiting_bytes -= size_bytes
            self._done.append(name)
            os.write(self._signal, b"\0")

    def done(self) -> list[str]:
        """Return the names of the databases of which something was written since the last call."""
        os.read(self.descriptor, _READ_BYTES)
        return [self._done.popleft() for _ in range(len(self._done))]


def _due_at(pause: float) -> float:
    """When a pause ends: a long one together with others, because waking up costs more than a poll."""
    at = time.monotonic() + pause
    return at if pause < _LONG_PAUSE_SECONDS else math.ceil(at / _TOGETHER_SECONDS) * _TOGETHER_SECONDS


def _report(name: str, happened: Iterable[Cut | WindowBegan | WindowEnded | Mark]) -> None:
    for each in happened:
        match each:
            case Cut():
                _emit("segment", name=name, **each._asdict())
            case WindowBegan():
                _emit("began", name=name, window=each.window)
            case WindowEnded():
                _emit("ended", name=name, **each._asdict())
            case Mark():
                pass


def _emit(event: str, **values: object) -> None:
    line = json.dumps({"event": event, **values}).encode() + b"\n"
    with suppress(BrokenPipeError):  # the parent is gone: the next one finds the segments in the spools
        while line:
            line = line[os.write(sys.stdout.fileno(), line) :]


def main() -> None:
    """Follow what stdin asks for, until its end."""
    following = _Following()
    descriptor = sys.stdin.fileno()
    ready = select.poll()
    ready.register(descriptor, select.POLLIN)
    ready.register(following.writer.descriptor, select.POLLIN)
    rest = b""
    while True:
        found = [each for each, _ in ready.poll(following.poll() * 1000)]
        if following.writer.descriptor in found:
            following.collect()
        if descriptor not in found:
            continue
        chunk = os.read(descriptor, _READ_BYTES)
        if not chunk:
            break
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            following.obey(json.loads(line))
    following.end()


if __name__ == "__main__":
    main()
