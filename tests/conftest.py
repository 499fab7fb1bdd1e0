from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from harness.s3_server import S3Server, moto_server, s3_server
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# The same examples on every run; HYPOTHESIS_PROFILE=wide looks for new ones. No deadline: machines are slow at times.
settings.register_profile("same", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("wide", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# A shell that starts the suite in the background has Ctrl-C ignored, and every process under it would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_FOREIGN = ("AWS_", "BOTO_", "BACKUPD_")
_FOREIGN_NAMES = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"}


@pytest.fixture(scope="session", autouse=True)
def _clean_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test sees the credentials, proxies or certificates of the machine that it runs on."""
    nothing: Path = tmp_path_factory.mktemp("aws") / "nothing"
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in list(os.environ):
            if name.startswith(_FOREIGN) or name.upper() in _FOREIGN_NAMES:
                monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(nothing))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(nothing))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
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
