"""Whether snapshots are encrypted, and whether whoever needs one will be able to read it."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from backupd.doctor.findings import Subject
from backupd.encryption import Encryption, read_identities
from backupd.errors import BackupdError, IdentityNeededError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backupd.config import Settings
    from backupd.doctor.findings import Finding

_SUBJECT = Subject("encryption")
_OTHERS = 0o007
_TRIAL_BYTES = 32


def judge_encryption(settings: Settings) -> Iterator[Finding]:
    """Tries every public key, and the secret ones that are here. Nothing when neither is configured."""
    recipients, identity_file = settings.encryption.recipients, settings.identity_file
    if identity_file is not None:
        yield from _identity(recipients, identity_file)
    if not recipients:
        return
    count = f"{len(recipients)} public keys" if len(recipients) > 1 else "one public key"
    yield _SUBJECT.ok("recipients", f"snapshots are encrypted to {count}")
    if identity_file is None:
        yield _SUBJECT.note(
            "identity",
            "there is no secret key here: a stolen machine cannot read the past, and drills restore nothing: they find "
            "a snapshot `intact` (every stored byte is what was written), and never proven",
            "now and then, where the key is: backupd verify --level drill --identity FILE --store URL",
        )


def _identity(recipients: tuple[str, ...], file: Path) -> Iterator[Finding]:
    trial = secrets.token_bytes(_TRIAL_BYTES)
    try:
        read_identities(file)
        is_read_here = not recipients or any(_decrypts(each, trial, file) for each in recipients)
    except BackupdError as error:
        yield _SUBJECT.failed("identity", error)
        return
    mode = file.stat().st_mode & 0o777
    if mode & _OTHERS:
        told = f"{file} can be read by everybody on this machine (mode {mode:04o})"
        yield _SUBJECT.warning("identity", told, f"chmod 0600 {file}")
    if not is_read_here:
        yield _SUBJECT.warning(
            "identity",
            f"no key in {file} decrypts what is written now",
            "put the key of one of the recipients into it as well",
        )
        return
    yield _SUBJECT.ok("identity", f"the keys in {file} can be used; whoever has this machine can read the past")


def _decrypts(recipient: str, trial: bytes, file: Path) -> bool:
    try:
        return Encryption([recipient], file).decrypt(Encryption([recipient]).encrypt(trial), what="a trial") == trial
    except IdentityNeededError:
        return False
