from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest

from backupd.logs import log

ODD = "/data/tenant-\udcff.db"
"""The path of a file whose name is no text: its last byte is 0xFF."""

_LOG_FROM_THREADS = """
import sys
import threading
from backupd.logs import log
log.configure(is_quiet=False, is_daemon=True)
sys.setswitchinterval(1e-6)
threads = [
    threading.Thread(target=lambda: [log.info("snapshot", database="app", note="x" * 200) for _ in range(500)])
    for _ in range(8)
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
_LOG_ODD_NAME = """
import os
import sys
from backupd.logs import log
log.configure(is_quiet=False, is_daemon=sys.argv[1] == "daemon")
if sys.argv[1] == "strict":
    sys.stderr.reconfigure(errors="strict")
log.warning(f"no such file: {os.fsdecode(sys.argv[2])}", path=os.fsdecode(sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def _log_as_before():
    """Others log as people read it."""
    yield
    log.configure(is_quiet=False)


def test_lines_of_several_threads_stay_whole() -> None:
    """Lines that several threads log under load stay whole."""
    done = subprocess.run([sys.executable, "-c", _LOG_FROM_THREADS], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 4000
    assert {json.loads(line)["database"] for line in lines} == {"app"}


def test_each_line_is_one_write(monkeypatch) -> None:
    """What is written in two parts comes apart, whatever the interpreter does between them today."""
    written = []

    class Stream:
        encoding = "utf-8"

        def write(self, text: str) -> None:
            written.append((text, threading.get_ident()))

        def flush(self) -> None:
            written.append(("flush", threading.get_ident()))

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr(sys, "stderr", Stream())
    log.configure(is_quiet=False)
    log.info("first")
    (line, _), flushed = written
    assert line.endswith("event=first\n")
    assert flushed[0] == "flush"


@pytest.mark.parametrize("way", ["daemon", "strict", "plain"])
def test_names_that_are_no_text_can_be_logged(way: str) -> None:
    """A file name that is no text can be logged in every form, on every stream."""
    done = subprocess.run(
        [sys.executable, "-c", _LOG_ODD_NAME, way, os.fsencode(ODD)],
        capture_output=True,
        check=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    (line,) = (done.stdout + done.stderr).decode().splitlines()
    assert "tenant-\\udcff.db" in line
    if way == "daemon":
        assert json.loads(line)["path"] == ODD
