from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from backupd.config import EncryptionSettings, load
from backupd.doctor.configuration import (
    StateLook,
    find_protected,
    has_secret,
    judge_file,
    judge_protected,
    judge_secret_files,
    judge_state,
    look_at_state,
)
from backupd.doctor.findings import Finding, Subject, Verdict, exit_code_of
from backupd.doctor.mounts import Host, Mount
from backupd.encryption import generate_identity
from backupd.errors import BusyError, ExitCode

_MACHINE = Host((Mount("/", "ext4", "/dev/sda1", is_read_only=False),), is_container=False)
_CONTAINER = Host((Mount("/", "overlay", "overlay", is_read_only=False),), is_container=True)
_STATE = StateLook(Path("/state"), Path("/state"), exists=True, problem=None, free_bytes=10**12)


def _written(tmp_path: Path, text: str) -> Any:
    file = tmp_path / "backupd.toml"
    file.write_text(text)
    return load(file, {"BACKUPD_STATE_DIR": str(tmp_path / "state")})


def _verdicts(findings: Any) -> list[tuple[str, Verdict]]:
    return [(finding.check, finding.verdict) for finding in findings]


def test_secrets_in_a_file_for_everybody(tmp_path: Path) -> None:
    """Warned of where others may read the file, and only if it holds one."""
    settings = _written(tmp_path, '[[notifications]]\nurl = "json://user:password@localhost"\n')
    settings.source.chmod(0o644)
    assert _verdicts(judge_file(settings, {})) == [("file", Verdict.OK), ("secrets", Verdict.WARNING)]
    settings.source.chmod(0o640)
    assert _verdicts(judge_file(settings, {})) == [("file", Verdict.OK)]
    settings = _written(tmp_path, '[[stores]]\nurl = "backups"\n')
    settings.source.chmod(0o644)
    assert _verdicts(judge_file(settings, {})) == [("file", Verdict.OK)]


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
def test_what_is_a_secret(table: dict[str, Any], *, is_secret: bool) -> None:
    """Keys, tokens, and URLs that let somebody speak for backupd."""
    assert has_secret(table) is is_secret


def test_secret_files_that_others_may_read(tmp_path: Path) -> None:
    """Told on a machine; in a container nobody else is there, and Docker's secrets are like that."""
    for name, mode in (("open", 0o644), ("private", 0o600)):
        (tmp_path / name).write_text("secret")
        (tmp_path / name).chmod(mode)
    environ = {
        "BACKUPD_HTTP__TOKEN_FILE": str(tmp_path / "open"),
        "BACKUPD_STORES__0__SECRET_ACCESS_KEY_FILE": str(tmp_path / "private"),
        "OTHER_FILE": str(tmp_path / "open"),
    }
    (finding,) = judge_secret_files(environ, _MACHINE)
    assert "BACKUPD_HTTP__TOKEN_FILE" in finding.message
    assert list(judge_secret_files(environ, _CONTAINER)) == []


def test_nothing_configured_is_an_error(tmp_path: Path) -> None:
    """A configuration that was lost must not look like one that is well."""
    settings = load(None, {"HOME": str(tmp_path), "BACKUPD_STATE_DIR": str(tmp_path)})
    assert _verdicts(judge_file(settings, {})) == [("file", Verdict.NOTE)]
    findings = [*judge_protected(settings, find_protected(settings))]
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
def test_variables_are_a_configuration_too(tmp_path: Path, environ: dict[str, str], verdict: Verdict) -> None:
    """A container that is told by variables lacks no file; one that is told nothing does."""
    settings = load(None, {"HOME": str(tmp_path), **environ})
    (finding,) = judge_file(settings, environ)
    assert (finding.check, finding.verdict, finding.remedy is None) == ("file", verdict, verdict is Verdict.OK)


def test_a_pattern_without_files_is_an_error(tmp_path: Path) -> None:
    """The volume may not be mounted; a plain path is looked at as a database, and needs no finding here."""
    (tmp_path / "one.db").touch()
    settings = _written(
        tmp_path,
        '[[databases]]\npath = "*.db"\n[[databases]]\npath = "none/*.db"\n[[databases]]\npath = "gone.db"\n'
        '[[stores]]\nurl = "backups"\n',
    )
    protected = find_protected(settings)
    findings = [*judge_protected(settings, protected)]
    assert [database.name for database in protected.databases] == ["one", "gone"]
    assert _verdicts(findings) == [("databases", Verdict.ERROR), ("databases", Verdict.OK), ("stores", Verdict.OK)]
    assert f"{tmp_path}/none/*.db" in findings[0].message
    assert "called otherwise" in (findings[0].remedy or "")
    assert findings[0].exit_code is ExitCode.SOURCE_UNUSABLE


def test_a_file_without_a_name_keeps_nobody_from_looking_at_the_others(tmp_path: Path) -> None:
    """A tenant with an odd name is one error, with its file."""
    for name in ("acme", "b@d", "zeta"):
        (tmp_path / f"{name}.db").touch()
    settings = _written(tmp_path, '[[databases]]\npath = "*.db"\n[[stores]]\nurl = "backups"\n')
    protected = find_protected(settings)
    assert [database.name for database in protected.databases] == [*protected.entries] == ["acme", "zeta"]
    findings = [*judge_protected(settings, protected)]
    assert _verdicts(findings) == [("databases", Verdict.ERROR), ("databases", Verdict.OK), ("stores", Verdict.OK)]
    assert "b@d.db" in findings[0].message
    assert "entry of its own" in (findings[0].remedy or "")
    assert findings[0].exit_code is ExitCode.USAGE


def test_the_state_directory_is_written_to_where_it_exists(tmp_path: Path) -> None:
    """Nothing is made and nothing stays; a file in its place, or above it, is a problem."""
    assert look_at_state(tmp_path / "deep/state").problem is None
    assert not look_at_state(tmp_path / "deep/state").exists
    assert look_at_state(tmp_path).exists
    assert [*tmp_path.iterdir()] == []
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file/state"):
        findings = [*judge_state(look_at_state(path), load(None, {"HOME": "/"}), _MACHINE, largest_bytes=0)]
        assert _verdicts(findings) == [("writable", Verdict.ERROR)], path
    assert look_at_state(Path("/proc/self")).problem is not None


@pytest.mark.parametrize(
    ("free_bytes", "largest_bytes", "verdict"),
    [
        (0, 0, Verdict.ERROR),
        (255 * 10**6, 0, Verdict.WARNING),
        (256 * 10**6, 0, Verdict.OK),
        (10**9, 2 * 10**9, Verdict.WARNING),
    ],
)
def test_room_for_packs_and_for_a_restore(free_bytes: int, largest_bytes: int, verdict: Verdict) -> None:
    """Less than packs.spool_limit, or than the largest database, is told before it matters."""
    look = StateLook(Path("/state"), Path("/state"), exists=True, problem=None, free_bytes=free_bytes)
    found = {
        each.check: each for each in judge_state(look, load(None, {"HOME": "/"}), _MACHINE, largest_bytes=largest_bytes)
    }
    assert found["space"].verdict is verdict


def test_state_that_does_not_last_is_a_note() -> None:
    """Backups do not need it."""
    settings = load(None, {"HOME": "/"})
    found = {each.check: each.verdict for each in judge_state(_STATE, settings, _CONTAINER, largest_bytes=0)}
    assert found == {"writable": Verdict.OK, "mount": Verdict.NOTE, "space": Verdict.OK}


@pytest.mark.parametrize("has_key", [False, True])
def test_state_is_worth_keeping_where_packs_cannot_be_read_back(*, has_key: bool) -> None:
    """With encryption and no key here, on a disk that lasts as well; it is said once, by the state directory."""
    settings = load(None, {"HOME": "/"})
    settings = settings.model_copy(
        update={
            "encryption": EncryptionSettings(recipients=(generate_identity(datetime.now(UTC))[0],)),
            "identity_file": Path("/key") if has_key else None,
        }
    )
    found = {each.check: each for each in judge_state(_STATE, settings, _MACHINE, largest_bytes=0)}
    assert [*found] == (["writable", "space"] if has_key else ["writable", "lasts", "space"])
    if not has_key:
        assert found["lasts"].verdict is Verdict.NOTE
        assert "stores every page again, because packs are encrypted" in found["lasts"].message
    lost = {each.check: each.verdict for each in judge_state(_STATE, settings, _CONTAINER, largest_bytes=0)}
    assert lost["mount"] is (Verdict.NOTE if has_key else Verdict.WARNING)


def test_the_gravest_error_gives_the_exit_code() -> None:
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
