"""RESTORE.md is right: each of its commands does what it says there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness.extent import slow
from harness.pages import blocks
from harness.rescuing import RESCUE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.rescuing import Bare, Kept
    from harness.s3_server import S3Server

_PAGE = RESCUE.with_name("RESTORE.md")
_BLOCKS = blocks(_PAGE, "sh")
_VENV = Path(sys.executable).parent


def _commands(*words: str) -> list[str]:
    """The blocks that contain one of `words`."""
    return [block for block in _BLOCKS if any(word in block for word in words)]


def _run(block: str, cwd: Path, environ: Mapping[str, str]) -> None:
    subprocess.run(["bash", "-euo", "pipefail", "-c", block], cwd=cwd, env=dict(environ), check=True, timeout=60)


def _environ(bare: Bare, home: Path) -> dict[str, str]:
    """Zstd and age first, then a Python without packages, then what every machine has."""
    programs = home / "programs"
    programs.mkdir()
    (programs / "python3").write_text(f'#!/bin/sh\nexec {bare.python} -I -S "$@"\n')
    (programs / "python3").chmod(0o755)
    backupd = shutil.which("backupd", path=str(_VENV))
    assert backupd is not None
    (programs / "backupd").symlink_to(backupd)
    return {
        "PATH": f"{programs}:{bare.path}:/usr/bin:/bin",
        "HOME": str(home),
        "BACKUPD_STATE_DIR": str(home / "state of another machine"),
    }


def test_every_command_of_the_page_is_tried() -> None:
    """Every block of commands on the page is run by one of the tests below."""
    tried = _commands("rclone", "rescue.py", "backupd", "zstd", "sha256sum")
    assert tried == _BLOCKS
    assert len(_BLOCKS) >= 6


@slow
def test_commands_in_a_repository(bare: Bare, plain: Kept, encrypted: Kept, tmp_path: Path) -> None:
    """The page's commands, run in their order in a copied repository, restore the database."""
    place = plain.copy(tmp_path / "plain").place
    private = encrypted.copy(tmp_path / "encrypted")
    assert private.identity is not None
    shutil.copy(private.identity, private.place.store / "key.txt")
    expected = place.home / "expected.db"
    place.backupd.run("restore", "latest", "--to", expected)
    environ = _environ(bare, tmp_path)
    for block in _BLOCKS:
        if "rclone" not in block:
            repository = private.place.store if "key.txt" in block else place.store
            _run(block.replace("NAME", "app"), repository, environ)
    for name in ("restored.db", "checked.db", "with-backupd.db"):
        assert (place.home / name).read_bytes() == expected.read_bytes()
    assert (private.place.home / "secret.db").stat().st_size == expected.stat().st_size
    assert (place.home / "pages").stat().st_size % 4096 == 0


def test_damage_is_found_by_the_command_for_it(bare: Bare, plain: Kept, tmp_path: Path) -> None:
    """The page's command finds one flipped bit with nothing but sha256sum."""
    store = plain.copy(tmp_path / "plain").place.store
    (block,) = _commands("sha256sum")
    pack = min((store / "app/packs").iterdir())
    content = bytearray(pack.read_bytes())
    content[-1] ^= 1
    pack.write_bytes(content)
    with pytest.raises(subprocess.CalledProcessError):
        _run(block.replace("NAME", "app"), store, _environ(bare, tmp_path))


@slow
def test_a_bucket_is_copied(bare: Bare, plain: Kept, seaweed: S3Server, tmp_path: Path) -> None:
    """A bucket that the page's rclone commands copy, whole or in part, can be restored."""
    bucket, rclone = seaweed.new_bucket(), shutil.which("rclone", path=str(_VENV))
    assert rclone is not None
    environ = {
        **_environ(bare, tmp_path),
        "RCLONE_CONFIG_REMOTE_TYPE": "s3",
        "RCLONE_CONFIG_REMOTE_PROVIDER": "Other",
        "RCLONE_CONFIG_REMOTE_ENDPOINT": seaweed.endpoint_url,
        "RCLONE_CONFIG_REMOTE_ACCESS_KEY_ID": seaweed.access_key_id,
        "RCLONE_CONFIG_REMOTE_SECRET_ACCESS_KEY": seaweed.secret_access_key,
    }
    (tmp_path / "programs/rclone").symlink_to(rclone)
    _run(f"rclone copy {plain.place.store} REMOTE:{bucket}/team/app", tmp_path, environ)
    for block in _commands("rclone"):
        _run(block.replace("BUCKET/PREFIX", f"{bucket}/team/app").replace("NAME", "app"), tmp_path, environ)
    for copy in ("copy", "part"):
        bare.rescue("restore", "app@latest", tmp_path / f"{copy}.db", repository=tmp_path / copy)
    assert (tmp_path / "copy.db").read_bytes() == (tmp_path / "part.db").read_bytes()
    assert len(list((tmp_path / "part/app/packs").iterdir())) < len(list((tmp_path / "copy/app/packs").iterdir()))
