from __future__ import annotations

from backupd.doctor.findings import Finding, Subject, Verdict, exit_code_of
from backupd.errors import BusyError, ExitCode


def test_the_most_severe_error_gives_the_exit_code() -> None:
    """Warnings give none; of several errors, the configuration's comes before the source's and the store's."""
    subject = Subject("x")
    store = subject.error("a", "m", "r", ExitCode.STORE_UNAVAILABLE)
    source = subject.error("a", "m", "r", ExitCode.SOURCE_UNUSABLE)
    usage = subject.error("a", "m", "r", ExitCode.USAGE)
    assert exit_code_of([]) is ExitCode.DONE
    assert exit_code_of([subject.warning("a", "m", "r"), subject.note("a", "m")]) is ExitCode.DONE
    assert exit_code_of([store]) is ExitCode.STORE_UNAVAILABLE
    assert exit_code_of([store, source]) is ExitCode.SOURCE_UNUSABLE
    assert exit_code_of([store, source, usage]) is ExitCode.USAGE
    assert exit_code_of([Finding("x", "a", Verdict.ERROR, "m", "r", ExitCode.INTERRUPTED)]) is ExitCode.INTERRUPTED
    assert subject.failed("a", BusyError("m")).exit_code is ExitCode.BUSY
