"""What is in the image, and what is not."""

from __future__ import annotations

import json

import pytest

from container.engine import BASE_IMAGE
from container.project import BACKUPD_IMAGE

_MOST_MB = 130
_PYTHON = "/opt/backupd/bin/python"

# With nothing to answer at any address, a service that botocore can still call refuses the connection.
_CREDENTIALS = """
import os
from pathlib import Path
import botocore.session
from botocore.exceptions import EndpointConnectionError

os.environ |= {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_CONFIG_FILE": "/tmp/config", "AWS_MAX_ATTEMPTS": "1",
               "AWS_EC2_METADATA_DISABLED": "true"}
Path("/tmp/token").write_text("token")
Path("/tmp/config").write_text('''
[profile keys]
aws_access_key_id = key
aws_secret_access_key = secret
region = eu-central-1
[profile role]
role_arn = arn:aws:iam::123456789012:role/backup
source_profile = keys
[profile identity]
role_arn = arn:aws:iam::123456789012:role/backup
web_identity_token_file = /tmp/token
''')
for profile in ("keys", "role", "identity"):
    session = botocore.session.Session(profile=profile)
    session.create_client("s3", region_name="eu-central-1")
    try:
        print(profile, session.get_credentials().get_frozen_credentials().access_key)
    except EndpointConnectionError as error:
        print(profile, "asks", str(error).split('"')[1])
for name in ("sso", "sso-oidc", "signin"):
    botocore.session.Session(profile="keys").create_client(name, region_name="eu-central-1")
    print(name)
"""

_IMPORTS = """
import importlib, pkgutil
import backupd
import apprise
apprise.Apprise().add("mailtos://user:password@example.org")
for module in pkgutil.walk_packages(backupd.__path__, "backupd."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        print(module.name)
"""

_WITHOUT_BYTECODE = """
import contextlib, os, pathlib, sys
with contextlib.redirect_stdout(None):
    exec(sys.argv[1])
for name, module in list(sys.modules.items()):
    spec = getattr(module, "__spec__", None)
    if spec is not None and spec.cached and not os.path.exists(spec.cached):
        print(name)
"""


def _run(engine, *command: str, entrypoint: str = _PYTHON, **others: bool) -> str:
    options = ["--rm", "--network=none", "--read-only", "--tmpfs=/tmp", f"--entrypoint={entrypoint}"]
    return engine.docker("run", *options, BACKUPD_IMAGE, *command, **others)


def test_image_adds_at_most_130_mb(engine, capsys):
    """The image is at most 130 MB larger than its base image, by the sizes that the engine reports."""
    more_mb = (engine.size_bytes(BACKUPD_IMAGE) - engine.size_bytes(BASE_IMAGE)) / 10**6
    with capsys.disabled():
        print(f"\nthe image holds {more_mb:.1f} MB more than {BASE_IMAGE}")  # noqa: T201
    assert more_mb <= _MOST_MB


@pytest.mark.parametrize("tool", ["pip", "gcc", "cc", "ld", "make"])
def test_image_has_no_compiler_and_no_pip(engine, tool):
    """The image has neither a compiler nor pip: what is missing needs no updates, and cannot help an intruder."""
    assert tool not in _run(engine, "-c", f"command -v {tool} || echo none", entrypoint="/bin/sh")
    assert "No module named pip" in _run(engine, "-m", "pip", is_failure_expected=True)


def test_image_has_its_labels(engine):
    """Labels, the signal that stops it, the health check, and no user: the entry point finds out who to be."""
    (image,) = json.loads(engine.docker("image", "inspect", BACKUPD_IMAGE))
    config = image["Config"]
    assert {"title", "description", "licenses"} <= {
        label.removeprefix("org.opencontainers.image.") for label in config["Labels"]
    }
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"] == ["CMD", "backupd", "status", "--check"]
    assert (config["Entrypoint"], config["Cmd"], config["User"]) == (["backupd"], ["run"], "")


def test_every_way_to_credentials_is_still_there(engine):
    """Taking away what botocore knows of other services has not taken roles, web identities or single sign-on."""
    lines = _run(engine, "-c", _CREDENTIALS).splitlines()
    assert lines[:3] == ["keys key", "role asks http://127.0.0.1:9/", "identity asks http://127.0.0.1:9/"]
    assert lines[3:] == ["sso", "sso-oidc", "signin"]


def test_every_module_can_be_imported(engine):
    """Every module of backupd and of notifications can be imported, so no file that was left out is missing."""
    imported = _run(engine, "-c", _IMPORTS).splitlines()
    assert "backupd.store.s3" in imported
    assert "backupd.cli.run" in imported


def test_image_has_bytecode_of_every_module(engine):
    """Python's own library too: in a read-only file system it would be compiled at every start and health check."""
    assert _run(engine, "-c", _WITHOUT_BYTECODE, _IMPORTS) == ""


def test_time_zones_are_there(engine):
    """The image has time zones, which schedules need."""
    shown = _run(engine, "-c", "import zoneinfo; print(zoneinfo.ZoneInfo('Europe/Berlin'))")
    assert shown.strip() == "Europe/Berlin"
