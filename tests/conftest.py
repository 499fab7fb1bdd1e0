from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest
from harness.faults import late_hooks
from harness.s3_server import S3Server, moto_server, s3_server
from hypothesis import HealthCheck, settings

from backupd import errors
from backupd.system import processes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# The same examples on every run, `few` in `make test` and `many` in `make test-full`; HYPOTHESIS_PROFILE=wide looks for
# new ones. No deadline: machines are slow at times.
_SAME = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", _SAME)
settings.register_profile("few", _SAME, max_examples=30)
settings.register_profile("many", _SAME, max_examples=300)
settings.register_profile("wide", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# A shell that starts the suite in the background has Ctrl-C ignored, and every process under it would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Images of Python set these. The commands of tests do not have them, so none could be forked from a process that has
# loaded backupd (`harness.warm`); and without bytecode, every process would compile what it imports.
for _name in ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"):
    os.environ.pop(_name, None)
sys.dont_write_bytecode = False

_MOST_LATE_HOOKS = 2
_FOREIGN = ("AWS_", "BOTO_", "BACKUPD_")
_FOREIGN_NAMES = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"}


def pytest_xdist_auto_num_workers() -> int:
    """Half as many workers again as there are processors, because each waits for a third of its time."""
    return -(-3 * len(os.sched_getaffinity(0)) // 2)


@pytest.fixture(scope="session", autouse=True)
def _clean_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hide the credentials, proxies and certificates of this machine from every test."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored, and every process that a test starts too
    nothing: Path = tmp_path_factory.mktemp("aws") / "nothing"
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in list(os.environ):
            if name.startswith(_FOREIGN) or name.upper() in _FOREIGN_NAMES:
                monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(nothing))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(nothing))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        if any(name.startswith("COVERAGE_") for name in os.environ):
            # The processes that look at databases are to be measured too.
            monkeypatch.setattr(processes, "_PASSED_PREFIXES", (*processes._PASSED_PREFIXES, "COVERAGE_"))
        yield


@pytest.fixture(autouse=True)
def _own_secrets() -> Iterator[None]:
    """Forget the secrets of each test with its end: all later tests would search every text for them."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(errors, "_secrets", set(errors._secrets))
        monkeypatch.setattr(errors, "_spelled", set(errors._spelled))
        monkeypatch.setattr(errors, "_pattern", errors._pattern)
        yield


@pytest.fixture(scope="session")
def seaweed() -> Iterator[S3Server]:
    """A real S3 server."""
    with s3_server() as server:
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    """A simulated S3 server, for speed."""
    with moto_server() as server:
        yield server


@pytest.fixture
def _hooks_come() -> Iterator[None]:
    """Most hooks come in time: what is cached differs between runs, but a hook that stays away tests nothing."""
    late_hooks.clear()
    yield
    assert len(late_hooks) <= _MOST_LATE_HOOKS
