from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backupd.config import load
from backupd.doctor.configuration import check_file, check_protected, check_secret_files, find_protected, has_secret
from backupd.doctor.directories import StateFacts
from backupd.doctor.findings import Verdict, exit_code_of
from backupd.errors import ExitCode
from backupd.system.mounts import Host, Mount

_MACHINE = Host((Mount("/", "ext4", "/dev/sda1", is_read_only=False),), is_container=False)
_CONTAINER = Host((Mount("/", "overlay", "overlay", is_read_only=False),), is_container=True)
_STATE = StateFacts(Path("/state"), Path("/state"), exists=True, problem=None, free_bytes=10**12)


def _written(tmp_path: Path, text: str) -> Any:
    file = tmp_path / "backupd.toml"
    file.write_text(text)
    return load(file, {"BACKUPD_STATE_DIR": str(tmp_path / "state")})


def _verdicts(findings: Any) -> list[tuple[str, Verdict]]:
    return [(finding.check, finding.verdict) for finding in findings]


def test_secrets_in_a_file_that_others_can_read_are_a_warning(tmp_path: Path) -> None:
    """A configuration file that others can read is a warning only if it contains a secret."""
    settings = _written(tmp_path, '[[notifications]]\nurl = "json://user:password@localhost"\n')
    settings.source.chmod(0o644)
    assert _verdicts(check_file(settings, {})) == [("file", Verdict.OK), ("secrets", Verdict.WARNING)]
    settings.source.chmod(0o640)
    assert _verdicts(check_file(settings, {})) == [("file", Verdict.OK)]
    settings = _written(tmp_path, '[[stores]]\nurl = "backups"\n')
    settings.source.chmod(0o644)
    assert _verdicts(check_file(settings, {})) == [("file", Verdict.OK)]


@pytest.mark.parametrize(
    ("table", "is_secret"),
    [
        ({}, False),
        ({"stores": [{"url": "s3://bucket/x"}]}, False),
        ({"stores": [{"url": "a"}, {"secret_access_key": "x"}]}, True),
        ({"http": {"listen": "", "token": "x"}}, True),
        ({"notifications": [{"url": "json://x"}]}, True),
        ({"heartbeats": [{"database": "app"}]}, False),
    ],
)
def test_keys_tokens_and_notification_urls_are_secrets(table: dict[str, Any], *, is_secret: bool) -> None:
    """Keys, tokens, and URLs that let their owner speak for backupd."""
    assert has_secret(table) is is_secret


def test_secret_files_that_others_can_read_are_a_warning(tmp_path: Path) -> None:
    """A secret file that others can read is a warning on a machine, and none in a container."""
    for name, mode in (("open", 0o644), ("private", 0o600)):
        (tmp_path / name).write_text("secret")
        (tmp_path / name).chmod(mode)
    environ = {
        "BACKUPD_HTTP__TOKEN_FILE": str(tmp_path / "open"),
        "BACKUPD_STORES__0__SECRET_ACCESS_KEY_FILE": str(tmp_path / "private"),
        "OTHER_FILE": str(tmp_path / "open"),
    }
    (finding,) = check_secret_files(environ, _MACHINE)
    assert "BACKUPD_HTTP__TOKEN_FILE" in finding.message
    assert list(check_secret_files(environ, _CONTAINER)) == []


def test_nothing_configured_is_an_error(tmp_path: Path) -> None:
    """A lost configuration must not look like a valid one."""
    settings = load(None, {"HOME": str(tmp_path), "BACKUPD_STATE_DIR": str(tmp_path)})
    assert _verdicts(check_file(settings, {})) == [("file", Verdict.NOTE)]
    findings = [*check_protected(settings, find_protected(settings))]
    assert _verdicts(findings) == [("databases", Verdict.ERROR), ("stores", Verdict.WARNING)]
    assert exit_code_of(findings) is ExitCode.USAGE


@pytest.mark.parametrize(
    ("environ", "verdict"),
    [
        ({"BACKUPD_DATABASES__0__PATH": "/data/app.db"}, Verdict.OK),
        ({"BACKUPD_STORES__0__URL": "/backups"}, Verdict.OK),
        ({"BACKUPD_STORES__0__URL": ""}, Verdict.NOTE),
        ({"BACKUPD_STATE_DIR": "/state"}, Verdict.NOTE),
    ],
)
def test_variables_replace_a_configuration_file(tmp_path: Path, environ: dict[str, str], verdict: Verdict) -> None:
    """With databases or stores in variables no configuration file is missing; without them, one is."""
    settings = load(None, {"HOME": str(tmp_path), **environ})
    (finding,) = check_file(settings, environ)
    assert (finding.check, finding.verdict, finding.remedy is None) == ("file", verdict, verdict is Verdict.OK)


def test_a_pattern_without_files_is_an_error(tmp_path: Path) -> None:
    """The volume may not be mounted; a plain path is checked as a database, and has no finding here."""
    (tmp_path / "one.db").touch()
    settings = _written(
        tmp_path,
        '[[databases]]\npath = "*.db"\n[[databases]]\npath = "none/*.db"\n[[databases]]\npath = "gone.db"\n'
        '[[stores]]\nurl = "backups"\n',
    )
    protected = find_protected(settings)
    findings = [*check_protected(settings, protected)]
    assert [database.name for database in protected.databases] == ["one", "gone"]
    assert _verdicts(findings) == [("databases", Verdict.ERROR), ("databases", Verdict.OK), ("stores", Verdict.OK)]
    assert f"{tmp_path}/none/*.db" in findings[0].message
    assert "another name" in (findings[0].remedy or "")
    assert findings[0].exit_code is ExitCode.SOURCE_UNUSABLE


def test_a_file_with_an_invalid_name_does_not_hide_the_others(tmp_path: Path) -> None:
    """A tenant with an odd name is one error, with its file."""
    for name in ("acme", "b@d", "zeta"):
        (tmp_path / f"{name}.db").touch()
    settings = _written(tmp_path, '[[databases]]\npath = "*.db"\n[[stores]]\nurl = "backups"\n')
    protected = find_protected(settings)
    assert [database.name for database in protected.databases] == [*protected.entries] == ["acme", "zeta"]
    findings = [*check_protected(settings, protected)]
    assert _verdicts(findings) == [("databases", Verdict.ERROR), ("databases", Verdict.OK), ("stores", Verdict.OK)]
    assert "b@d.db" in findings[0].message
    assert "entry of its own" in (findings[0].remedy or "")
    assert findings[0].exit_code is ExitCode.USAGE
