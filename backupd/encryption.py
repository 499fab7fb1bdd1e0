"""Encryption to public keys with age: the machine that stores data need not be able to read it.

The format is that of https://age-encryption.org/v1; `age -d -i IDENTITY` decrypts it. Only this module imports pyrage,
when it first encrypts or decrypts.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from backupd.errors import BackupdError, IdentityNeededError, UsageError, keep_secret

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

_AGE, _SSH = "age1", "ssh-"
_SECRET = "AGE-SECRET-KEY-"  # noqa: S105  (the beginning of one)
_PEM = "-----BEGIN "
_ENCRYPTED = (b"age-encryption.org/v1", b"-----BEGIN AGE ENCRYPTED FILE-----")
_MOST_IDENTITY_BYTES = 1 << 20


class InvalidRecipientError(UsageError):
    """A text is not a public key to encrypt to."""


def check_recipient(text: str) -> str:
    """Return `text` if it is a public key: `age1...`, or a line of OpenSSH for Ed25519 or RSA.

    Otherwise raises `InvalidRecipientError`, which never repeats a secret key.
    """
    _recipient(text)
    return text


def _recipient(text: str) -> Any:
    from pyrage import RecipientError, ssh, x25519  # noqa: PLC0415  (most runs encrypt nothing)

    hint = 'write "age1..." (backupd keygen makes one), "ssh-ed25519 AAAA..." or "ssh-rsa AAAA..."'
    if text.upper().startswith(_SECRET) or _PEM in text:
        raise InvalidRecipientError(
            "a secret key cannot be a recipient",
            hint="remove it here, and write its public key instead: age-keygen -y FILE prints it",
        )
    if not text.startswith((_AGE, _SSH)):
        raise InvalidRecipientError(f"{text[:40]!r} is not an age public key", hint=hint)
    try:
        return ssh.Recipient.from_str(text) if text.startswith(_SSH) else x25519.Recipient.from_str(text)
    except RecipientError as error:
        raise InvalidRecipientError(f"{text[:40]!r} is not an age public key: {error}", hint=hint) from None


class Encryption:
    """Encrypts to `recipients`, as `check_recipient` accepts them, and decrypts with the keys in `identity_file`.

    Either may be missing. No file is read before the first decryption.
    """

    def __init__(self, recipients: Sequence[str] = (), identity_file: Path | None = None) -> None:
        self.recipients = tuple(recipients)
        self.identity_file = identity_file
        self._encrypts_to: list[Any] | None = None
        self._identities: list[Any] | None = None

    @property
    def is_on(self) -> bool:
        """Whether new objects are encrypted."""
        return bool(self.recipients)

    @property
    def can_decrypt(self) -> bool:
        """Whether a file of secret keys is configured, whether or not they fit."""
        return self.identity_file is not None

    def identity_digest(self) -> str | None:
        """SHA-256 (hex) of the file of secret keys as it is now; None without one, and empty if it cannot be read."""
        if self.identity_file is None:
            return None
        try:
            return hashlib.sha256(_content_of(self.identity_file)).hexdigest()
        except UsageError:
            return ""

    def encrypt(self, content: bytes) -> bytes:
        """Return an age file with `content`. Each call returns other bytes."""
        import pyrage  # noqa: PLC0415  (as above)

        if self._encrypts_to is None:
            self._encrypts_to = [_recipient(each) for each in self.recipients]
        return bytes(pyrage.encrypt(content, self._encrypts_to))

    def decrypt(self, ciphertext: bytes, *, what: str) -> bytes:
        """Return the content of an age file, which is never longer than the file; `what` names it in messages.

        Raises `IdentityNeededError` without a key that fits, and `UsageError` for an unusable file of keys. Callers
        have checked that the bytes are as they were written.
        """
        import pyrage  # noqa: PLC0415  (as above)

        if self.identity_file is None:
            raise IdentityNeededError(
                f"{what} is encrypted, and there is no key here to decrypt it",
                hint="name the file with its age or SSH key: --identity FILE, or BACKUPD_IDENTITY_FILE",
            )
        if self._identities is None:
            self._identities = read_identities(self.identity_file)
        try:
            return bytes(pyrage.decrypt(ciphertext, self._identities))
        except pyrage.DecryptError as error:
            raise IdentityNeededError(
                f"none of the keys in {self.identity_file} decrypts {what}: {_lower(error)}",
                hint="it was encrypted to other keys: add them to the same file, one per line, or name another file",
            ) from None


NO_ENCRYPTION = Encryption()


def read_identities(file: Path) -> list[Any]:
    """Read the secret keys in a file, which `age-keygen` or `backupd keygen` wrote, or one OpenSSH key.

    Raises `UsageError`, which quotes no part of the file.
    """
    from pyrage import IdentityError, ssh, x25519  # noqa: PLC0415  (as above)

    content = _content_of(file)
    if content.startswith(_ENCRYPTED):
        raise _unusable(file, "the file itself is encrypted; `age -d` decrypts it")
    try:
        if _PEM.encode() in content:
            return [ssh.Identity.from_buffer(content)]
        lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
        keys = [line for line in lines if line and not line.startswith("#")]
        keep_secret(*keys)
        found = [x25519.Identity.from_str(key) for key in keys]
    except IdentityError as error:
        raise _unusable(file, _lower(error)) from None
    except UnicodeDecodeError:
        raise _unusable(file, "it is not text") from None
    if not found:
        raise _unusable(file, "it contains none")
    return found


def _content_of(file: Path) -> bytes:
    hint = "check --identity, BACKUPD_IDENTITY_FILE or identity_file; in a container, that the file is mounted there"
    try:
        with file.open("rb") as opened:
            content = opened.read(_MOST_IDENTITY_BYTES + 1)
    except OSError as error:
        raise UsageError(f"the file of keys {file} cannot be read: {error.strerror}", hint=hint) from error
    if len(content) > _MOST_IDENTITY_BYTES:
        raise _unusable(file, "it is longer than 1 MiB")
    return content


def _unusable(file: Path, reason: str) -> BackupdError:
    return UsageError(
        f"{file} has no key that can decrypt: {reason}",
        hint="name a file of backupd keygen or age-keygen, or an OpenSSH key (Ed25519 or RSA) without a passphrase",
    )


def _lower(error: Exception) -> str:
    text = str(error).rstrip(".")
    return text[:1].lower() + text[1:]


def generate_identity(now: datetime) -> tuple[str, str]:
    """Return a new public key, and the content of a file with its secret key, as `age-keygen` writes it."""
    from pyrage import x25519  # noqa: PLC0415  (as above)

    identity = x25519.Identity.generate()
    public = str(identity.to_public())
    return public, f"# created: {now.isoformat(timespec='seconds')}\n# public key: {public}\n{identity}\n"
