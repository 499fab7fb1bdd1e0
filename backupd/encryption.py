"""Encryption to public keys with age: what is stored cannot be read again on the machine that stored it.

The format is that of https://age-encryption.org/v1; `age -d -i IDENTITY` reads what this writes. The only importer of
pyrage, which is imported when something is encrypted or decrypted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backupd.errors import BackupdError, IdentityNeededError, UsageError
from backupd.masking import keep_secret

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

_AGE, _SSH = "age1", "ssh-"
_SECRET = "AGE-SECRET-KEY-"  # noqa: S105  (how one begins, and none)
_PEM = "-----BEGIN "
_ENCRYPTED = (b"age-encryption.org/v1", b"-----BEGIN AGE ENCRYPTED FILE-----")
_MOST_IDENTITY_BYTES = 1 << 20


class InvalidRecipientError(UsageError):
    """A text that is no public key to encrypt to."""


def check_recipient(text: str) -> str:
    """`text`, which is a public key: `age1...`, or a line of OpenSSH for Ed25519 or RSA.

    Raises `InvalidRecipientError`, which never repeats a secret key.
    """
    _recipient(text)
    return text


def _recipient(text: str) -> Any:
    from pyrage import RecipientError, ssh, x25519  # noqa: PLC0415  (most runs encrypt nothing)

    hint = 'write "age1..." (backupd keygen makes one), "ssh-ed25519 AAAA..." or "ssh-rsa AAAA..."'
    if text.upper().startswith(_SECRET) or _PEM in text:
        raise InvalidRecipientError(
            "a secret key is no recipient",
            hint="take it out of here, and write its public key: age-keygen -y FILE prints it",
        )
    if not text.startswith((_AGE, _SSH)):
        raise InvalidRecipientError(f"{text[:40]!r} is not a public key of age", hint=hint)
    try:
        return ssh.Recipient.from_str(text) if text.startswith(_SSH) else x25519.Recipient.from_str(text)
    except RecipientError as error:
        raise InvalidRecipientError(f"{text[:40]!r} is not a public key of age: {error}", hint=hint) from None


class Encryption:
    """Encrypts to `recipients`, as `check_recipient` takes them, and decrypts with the keys in `identity_file`.

    Either may be missing. Nothing is read before something is to be decrypted.
    """

    def __init__(self, recipients: Sequence[str] = (), identity_file: Path | None = None) -> None:
        self.recipients = tuple(recipients)
        self.identity_file = identity_file
        self._encrypts_to: list[Any] | None = None
        self._identities: list[Any] | None = None

    @property
    def is_on(self) -> bool:
        """Whether what is stored from now on is to be encrypted."""
        return bool(self.recipients)

    @property
    def can_decrypt(self) -> bool:
        """Whether there is a key to decrypt with, right or wrong."""
        return self.identity_file is not None

    def encrypt(self, content: bytes) -> bytes:
        """An age file with `content`. Each call gives other bytes."""
        import pyrage  # noqa: PLC0415  (as above)

        if self._encrypts_to is None:
            self._encrypts_to = [_recipient(each) for each in self.recipients]
        return bytes(pyrage.encrypt(content, self._encrypts_to))

    def decrypt(self, ciphertext: bytes, *, what: str) -> bytes:
        """The content of an age file, which is never longer than that; `what` it is goes into messages.

        Raises `IdentityNeededError` when there is no key, or none of those that it is encrypted to, and `UsageError`
        for a file of keys that cannot be used. The bytes themselves are known to be as they were written.
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
                hint="it was written for other keys: put theirs into the same file, one a line, or name another",
            ) from None


NO_ENCRYPTION = Encryption()


def read_identities(file: Path) -> list[Any]:
    """The secret keys in a file: those that `age-keygen` or `backupd keygen` writes, or one OpenSSH key.

    Raises `UsageError`, in which no part of the file stands.
    """
    from pyrage import IdentityError, ssh, x25519  # noqa: PLC0415  (as above)

    content = _content_of(file)
    if content.startswith(_ENCRYPTED):
        raise _unusable(file, "it is encrypted itself, and `age -d` decrypts it")
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
        raise _unusable(file, "there is none in it")
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
        f"{file} holds no key that can decrypt: {reason}",
        hint="give a file of backupd keygen or age-keygen, or an OpenSSH key (Ed25519 or RSA) without a passphrase",
    )


def _lower(error: Exception) -> str:
    text = str(error).rstrip(".")
    return text[:1].lower() + text[1:]


def generate_identity(now: datetime) -> tuple[str, str]:
    """A new pair of keys: the public one, and the content of a file with the secret one, as `age-keygen` writes it."""
    from pyrage import x25519  # noqa: PLC0415  (as above)

    identity = x25519.Identity.generate()
    public = str(identity.to_public())
    return public, f"# created: {now.isoformat(timespec='seconds')}\n# public key: {public}\n{identity}\n"
