from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from backupd.config import EncryptionSettings, Settings
from backupd.doctor.configuration import check_encryption
from backupd.doctor.findings import Verdict
from backupd.encryption import generate_identity

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A file with a secret key, for its owner alone."""
    return _write(tmp_path / "key")[1]


def _write(file: Path) -> tuple[str, Path]:
    public, content = generate_identity(datetime.now(UTC))
    file.write_text(content)
    file.chmod(0o600)
    return public, file


def _settings(tmp_path: Path, *recipients: str, identity_file: Path | None = None) -> Settings:
    return Settings(
        state_dir=tmp_path / "state", encryption=EncryptionSettings(recipients=recipients), identity_file=identity_file
    )


def _verdicts(settings: Settings) -> list[tuple[str, Verdict]]:
    return [(finding.check, finding.verdict) for finding in check_encryption(settings)]


def test_without_keys_there_is_no_finding(tmp_path: Path) -> None:
    """With neither encryption nor a key configured, there is no finding."""
    assert _verdicts(_settings(tmp_path)) == []


def test_without_a_secret_key_drills_prove_less(tmp_path: Path, key: Path) -> None:
    """A note says what drills prove then, and what to do. The state directory has a finding of its own."""
    public = key.read_text().split("public key: ")[1].split()[0]
    settings = _settings(tmp_path, public)
    assert _verdicts(settings) == [("recipients", Verdict.OK), ("identity", Verdict.NOTE)]
    _, identity = check_encryption(settings)
    assert "`intact`" in identity.message
    assert "verify --level drill --identity" in (identity.remedy or "")


def test_secret_keys_are_checked_against_recipients(tmp_path: Path, key: Path) -> None:
    """A key that decrypts what is written is ok, unless others can read it; a wrong or invalid one is not."""
    public = key.read_text().split("public key: ")[1].split()[0]
    other, other_key = _write(tmp_path / "other")
    well = ("identity", Verdict.OK), ("recipients", Verdict.OK)
    assert _verdicts(_settings(tmp_path, public, other, identity_file=key)) == [*well]
    assert _verdicts(_settings(tmp_path, identity_file=key)) == [("identity", Verdict.OK)]
    assert _verdicts(_settings(tmp_path, public, identity_file=other_key))[0] == ("identity", Verdict.WARNING)
    key.chmod(0o644)
    assert _verdicts(_settings(tmp_path, public, identity_file=key))[:2] == [("identity", Verdict.WARNING), well[0]]
    (tmp_path / "empty").touch()
    for file in (tmp_path / "empty", tmp_path / "none", tmp_path):
        assert _verdicts(_settings(tmp_path, public, identity_file=file))[0] == ("identity", Verdict.ERROR)
