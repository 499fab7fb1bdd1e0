"""A process that has loaded backupd and forks for each command: loading takes most of the time of a short one.

Started by `warm`. It takes each command with its descriptors from the socket on stdin, writes the process's number to
the last of them, and its exit status when it has ended. Each command is a process like any other, only quicker.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

_PROGRAMS = ("backupd.__main__", "backupd.rescue.rescue")
_MOST_BYTES = 1 << 20


def load() -> Callable[[], NoReturn]:
    """Import everything that some command imports; gives the program."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command line does before it imports numpy
    import backupd  # noqa: PLC0415
    from backupd.__main__ import main  # noqa: PLC0415  (before a module of `cli` gets the name of a function)
    from backupd.system import processes  # noqa: PLC0415

    for module in pkgutil.walk_packages(backupd.__path__, "backupd."):
        if module.name not in _PROGRAMS:
            with suppress(ImportError):
                importlib.import_module(module.name)
    if any(name.startswith("COVERAGE_") for name in os.environ):
        processes._PASSED_PREFIXES += ("COVERAGE_",)  # as `conftest` does
    gc.collect()
    gc.freeze()
    return main


def serve() -> dict[str, Any]:
    """Fork for each command that comes; returns in the child alone, with what it was asked for."""
    commands = socket.socket(fileno=os.dup(0))
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    reports: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([commands, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            _report_ended(reports)
        if commands not in ready:
            continue
        content, descriptors, _, _ = socket.recv_fds(commands, _MOST_BYTES, 4)
        if not content:
            os._exit(0)
        *streams, report = descriptors
        process = os.fork()
        if process == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            os.closerange(3, max([commands.fileno(), woken, wake, *descriptors, *reports.values()]) + 1)
            commands.detach()
            asked: dict[str, Any] = json.loads(content)
            return asked
        os.write(report, f"{process}\n".encode())
        reports[process] = report
        for stream in streams:
            os.close(stream)


def _report_ended(reports: dict[int, int]) -> None:
    while reports:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process == 0:
            return
        report = reports.pop(process)
        with suppress(OSError):
            os.write(report, f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os.close(report)


def become(asked: dict[str, Any]) -> None:
    """Give this process all that a new one would have."""
    if asked["is_session"]:
        os.setsid()
    os.umask(asked["umask"])
    os.chdir(asked["directory"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    time.tzset()
    sys.stdin, sys.stdout, sys.stderr = (_opened(stream) for stream in (sys.stdin, sys.stdout, sys.stderr))
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    sys.argv = ["backupd", *asked["arguments"]]
    sys.path[0] = asked["directory"]


def _opened(stream: TextIO) -> TextIO:
    return open(
        stream.fileno(),
        stream.mode,
        buffering=1 if stream.line_buffering else -1,
        encoding=stream.encoding,
        errors=stream.errors,
        closefd=False,
    )


sys.path[0] = ""
main = load()
become(serve())
main()
