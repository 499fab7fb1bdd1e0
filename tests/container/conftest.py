from __future__ import annotations

import pytest

from container.engine import ROOT, Engine, find_engine
from container.project import BACKUPD_IMAGE, S3_IMAGE, web_image


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The engine, with backupd's image built."""
    found = find_engine()
    found.build(ROOT, BACKUPD_IMAGE)
    return found


@pytest.fixture(scope="session")
def s3_image(engine) -> str:
    """The S3 server's image."""
    engine.build(ROOT / "tests/container/seaweedfs", S3_IMAGE)
    return S3_IMAGE


@pytest.fixture(params=[0, 1000, 10001], ids=lambda uid: f"uid {uid}")
def uid(request, engine) -> int:
    """The user id that the web service runs as; its image is built."""
    engine.build(ROOT / "tests/creditrobot", web_image(request.param), UID=request.param)
    return request.param
