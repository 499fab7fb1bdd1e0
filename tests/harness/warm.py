"""Commands as processes that need not load backupd, which takes most of the time of a short command."""

from __future__ import annotations

import atexit
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SERVER = Path(__file__).with_name("warm_server.py")
_OF_INTERPRETER = ("PYTHON", "LD_", "FAKETIME", "COVERAGE_")
_OF_SERVERS = {"LANG", "LC_ALL", "LC_CTYPE", "PYTHONWARNINGS"}
"""Variables that Python reads when it starts: for each set of their values there is a server."""
_servers: dict[frozenset[tuple[str, str]], socket.socket] = {}


class WarmProcess:
    """A running command, with what tests use of `subprocess.Popen`."""

    def __init__(self, command: Sequence[str], stdout: int, stderr: int, report: int) -> None:
        self.args = command
        self.returncode: int | None = None
        self._report = os.fdopen(report, "rb", buffering=0)
        self._streams = [stdout, stderr]
        self.pid = int(self._line())

    def communicate(self, *, timeout: float) -> tuple[str, str]:
        """Stdout and stderr, when the command has ended and every process that has them open."""
        give_up_at = time.monotonic() + timeout
        written: dict[int, bytearray] = {stream: bytearray() for stream in self._streams}
        with selectors.DefaultSelector() as selector:
            for stream in self._streams:
                selector.register(stream, selectors.EVENT_READ)
            while selector.get_map():
                ready = selector.select(give_up_at - time.monotonic())
                if not ready:
                    raise subprocess.TimeoutExpired(self.args, timeout)
                for key, _ in ready:
                    block = os.read(key.fd, 1 << 16)
                    written[key.fd] += block
                    if not block:
                        selector.unregister(key.fd)
                        os.close(key.fd)
        self._streams = []
        self.returncode = int(self._line())
        self._report.close()
        stdout, stderr = (text.decode().replace("\r\n", "\n").replace("\r", "\n") for text in written.values())
        return stdout, stderr

    def kill(self) -> None:
        """SIGKILL, if it has not ended."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            for stream in self._streams:
                os.close(stream)
            self._streams = []
            self._report.close()

    def _line(self) -> bytes:
        line = self._report.readline()
        assert line, "the server of warm processes has ended"
        return line


def start(
    arguments: Sequence[str],
    *,
    directory: Path,
    environment: Mapping[str, str],
    umask: int = -1,
    is_session: bool = False,
) -> WarmProcess | subprocess.Popen[str]:
    """Start `backupd` with these arguments; it reads nothing, and what it writes is collected.

    Where the environment changes how Python itself starts, the process is one that loads everything.
    """
    if not _is_usual(environment):
        return subprocess.Popen(
            [sys.executable, "-m", "backupd", *arguments],
            cwd=directory,
            env=environment,
            umask=umask,
            start_new_session=is_session,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    (stdout, stdout_end), (stderr, stderr_end), (report, report_end) = os.pipe(), os.pipe(), os.pipe()
    nothing = os.open(os.devnull, os.O_RDONLY)
    asked = {
        "arguments": arguments,
        "directory": str(directory),
        "environment": dict(environment),
        "umask": _umask() if umask < 0 else umask,
        "is_session": is_session,
    }
    descriptors = [nothing, stdout_end, stderr_end, report_end]
    try:
        socket.send_fds(_server(environment), [json.dumps(asked).encode()], descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return WarmProcess(["backupd", *arguments], stdout, stderr, report)


def _is_usual(environment: Mapping[str, str]) -> bool:
    return _interpreter_variables(environment) == _interpreter_variables(os.environ)


def _interpreter_variables(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(_OF_INTERPRETER) and name not in _OF_SERVERS
    }


def _umask() -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Umask:")]
    return int(line.split()[1], 8)


def _server(environment: Mapping[str, str]) -> socket.socket:
    key = frozenset((name, value) for name, value in environment.items() if name in _OF_SERVERS)
    if key not in _servers:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            server = subprocess.Popen(
                [sys.executable, _SERVER],
                env={"PATH": os.environ["PATH"], **_interpreter_variables(os.environ), **dict(key)},
                cwd="/",
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        atexit.register(_end, server, ours)
        _servers[key] = ours
    return _servers[key]


def _end(server: subprocess.Popen[bytes], commands: socket.socket) -> None:
    commands.close()
    server.wait()
