"""Keys: what is a recipient, what decrypts, and the errors for other keys."""

from __future__ import annotations

import stat
import subprocess
from datetime import UTC, datetime
from shutil import which
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from harness.command_line import CommandLine

from backupd.encryption import Encryption, InvalidRecipientError, check_recipient, generate_identity
from backupd.errors import IdentityNeededError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

_NOW = datetime(2026, 11, 22, 8, 55, 57, 123456, tzinfo=UTC)
_USAGE = 2
_WITH_PASSPHRASE = """\
-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAGYmNyeXB0AAAAGAAAABBAnEyc/y
I0kT+ufOh7/8E5AAAAEAAAAAEAAAAzAAAAC3NzaC1lZDI1NTE5AAAAICqM2MDdw6wXW9ah
FlgGkJrj//vuMki5kwlN9CyeVa00AAAAkBG+YXZJqqmap34hbBP5HIsO1CNzKLN/q+mLHE
yyEvp89lHdhG5/VMxSEwidFTf0M0tD9oR2q8o0oPnjT9I2a4sCIfsqCuDSSCRFwhXOu6DY
Ai8+HxOY8sbCcOHWczpfYKNfdvhhiZqMoZS+qTEQ0xSJmPbS98moSnDoBD7si1VlXM49df
AIzLvV8JDJN0rYjw==
-----END OPENSSH PRIVATE KEY-----
"""
_ITS_PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICqM2MDdw6wXW9ahFlgGkJrj//vuMki5kwlN9CyeVa00"


def _pair(tmp_path: Path, name: str) -> tuple[str, Path]:
    """A new public key, and a file with its secret one."""
    public, content = generate_identity(_NOW)
    (tmp_path / name).write_text(content)
    return public, tmp_path / name


def _ssh(tmp_path: Path, key: ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey) -> tuple[str, Path]:
    """The public line of an OpenSSH key, and a file with the secret one."""
    (tmp_path / "ssh").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode(), tmp_path / "ssh"


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 1 << 20])
def test_what_is_encrypted_is_decrypted(tmp_path: Path, size: int) -> None:
    """Around the sizes at which age begins another chunk, and no two times with the same bytes."""
    public, file = _pair(tmp_path, "key")
    content = bytes(range(256)) * (size // 256 + 1)
    encryption = Encryption([public], file)
    ciphertext = encryption.encrypt(content[:size])
    assert encryption.decrypt(ciphertext, what="it") == content[:size]
    assert encryption.encrypt(content[:size]) != ciphertext


def test_any_recipient_decrypts(tmp_path: Path) -> None:
    """Each of several keys decrypts what is for all of them, and another key decrypts nothing."""
    (first, first_file), (second, second_file), (_, other_file) = (_pair(tmp_path, name) for name in "abc")
    both = Encryption([first, second]).encrypt(b"for both")
    for file in (first_file, second_file):
        assert Encryption(identity_file=file).decrypt(both, what="it") == b"for both"
    with pytest.raises(IdentityNeededError, match=r"none of the keys in .*c decrypts the pack: no matching keys found"):
        Encryption(identity_file=other_file).decrypt(both, what="the pack")
    many = tmp_path / "many"
    many.write_text(f"# mine\n\n{other_file.read_text()}\n{second_file.read_text()}")
    assert Encryption(identity_file=many).decrypt(both, what="it") == b"for both"


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_ssh_keys_are_keys(tmp_path: Path, kind: str) -> None:
    """An OpenSSH key decrypts what is encrypted to its public line, comment included."""
    key = ed25519.Ed25519PrivateKey.generate() if kind == "ed25519" else rsa.generate_private_key(65537, 2048)
    public, file = _ssh(tmp_path, key)
    encryption = Encryption([check_recipient(f"{public} user@example")], file)
    assert encryption.decrypt(encryption.encrypt(b"content"), what="it") == b"content"


def test_an_ssh_key_with_a_passphrase_is_refused(tmp_path: Path) -> None:
    """An SSH key with a passphrase is refused, and the hint says which keys can be used."""
    (tmp_path / "ssh").write_text(_WITH_PASSPHRASE)
    with pytest.raises(UsageError, match="has no key that can decrypt") as raised:
        Encryption(identity_file=tmp_path / "ssh").decrypt(Encryption([_ITS_PUBLIC_KEY]).encrypt(b""), what="it")
    assert raised.value.hint is not None
    assert "without a passphrase" in raised.value.hint


def test_without_a_key_nothing_is_decrypted(tmp_path: Path) -> None:
    """Without a key nothing is decrypted, and the error says that one is needed."""
    public, _ = _pair(tmp_path, "key")
    with pytest.raises(IdentityNeededError, match="the pack is encrypted, and there is no key here"):
        Encryption([public]).decrypt(Encryption([public]).encrypt(b""), what="the pack")


@pytest.mark.parametrize(
    "content",
    [b"", b"# nothing\n", b"AGE-SECRET-KEY-1ABC\n", b"\xff\xfe", b"x" * (1 << 20) + b"x", b"-----BEGIN X-----"],
)
def test_a_file_without_keys_is_an_error(tmp_path: Path, content: bytes) -> None:
    """Empty, cut off, binary, far too long, of another kind: nothing of it is repeated."""
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(UsageError, match=r"key has no key that can decrypt: ") as raised:
        Encryption(identity_file=tmp_path / "key").decrypt(b"", what="it")
    assert "1ABC" not in str(raised.value)


@pytest.mark.parametrize(
    "content", ["\ufeff{}", "\ufeff  {}  \r\n", "# mine\r\n\r\n{}\r\n"], ids=["byte order mark", "blanks", "CRLF"]
)
def test_a_file_that_an_editor_has_saved_is_read(tmp_path: Path, content: str) -> None:
    """The key is the same, whatever an editor of another system puts around it."""
    public, file = _pair(tmp_path, "key")
    secret = next(line for line in file.read_text().splitlines() if not line.startswith("#"))
    (tmp_path / "saved").write_bytes(content.format(secret).encode())
    encryption = Encryption([public], tmp_path / "saved")
    assert encryption.decrypt(encryption.encrypt(b"content"), what="it") == b"content"


@pytest.mark.parametrize("content", [b"age-encryption.org/v1\n-> scrypt", b"-----BEGIN AGE ENCRYPTED FILE-----\nYWdl"])
def test_an_encrypted_file_of_keys_is_an_error(tmp_path: Path, content: bytes) -> None:
    """An encrypted file of keys is an error, because no user can type its passphrase."""
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(UsageError, match="the file itself is encrypted"):
        Encryption(identity_file=tmp_path / "key").decrypt(b"", what="it")


def test_a_missing_file_of_keys_is_an_error(tmp_path: Path) -> None:
    """A missing file of keys is an error with its path."""
    with pytest.raises(UsageError, match=r"the file of keys .*/none cannot be read: No such file"):
        Encryption(identity_file=tmp_path / "none").decrypt(b"", what="it")


def test_what_is_no_recipient(tmp_path: Path) -> None:
    """A typing error, a kind of key that age does not know, and above all a secret key, which is never repeated."""
    public, file = _pair(tmp_path, "key")
    secret = file.read_text().splitlines()[-1]
    line = ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    for wrong in ("", "me", public[:-1], f"{public}x", f"ssh-{line.decode()}", line.decode(), "ssh-ed25519 AAAA"):
        with pytest.raises(InvalidRecipientError, match="is not an age public key"):
            check_recipient(wrong)
    for text in (secret, secret.lower(), "-----BEGIN OPENSSH PRIVATE KEY-----"):
        with pytest.raises(InvalidRecipientError, match="a secret key cannot be a recipient") as raised:
            check_recipient(text)
        assert text not in f"{raised.value} {raised.value.hint}"
    assert check_recipient(public) == public


def test_keygen_makes_a_key_that_decrypts(tmp_path: Path) -> None:
    """The file is for its owner alone, and is never overwritten; without one, everything is printed."""
    place = CommandLine(tmp_path)
    made = place.run("keygen", "--output", "backupd.key", expect=0)
    file = tmp_path / "backupd.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    encryption = Encryption([made.stdout.strip()], file)
    assert encryption.decrypt(encryption.encrypt(b"content"), what="it") == b"content"
    before = file.read_bytes()
    again = place.run("keygen", "--output", "backupd.key", expect=_USAGE)
    assert "error: backupd.key exists" in again.stderr
    assert file.read_bytes() == before
    (tmp_path / "printed.key").write_text(place.run("keygen", expect=0).stdout)
    assert Encryption(identity_file=tmp_path / "printed.key").can_decrypt
    document = place.run("keygen", "--json", expect=0).document
    (tmp_path / "json.key").write_text(document["identity"])
    encryption = Encryption([document["recipient"]], tmp_path / "json.key")
    assert encryption.decrypt(encryption.encrypt(b"content"), what="it") == b"content"
    assert place.run("keygen", "--output", "no/such/place", expect=_USAGE).stdout == ""


@pytest.mark.skipif(which("age") is None, reason="needs the age command line tool")
def test_age_itself_decrypts(tmp_path: Path) -> None:
    """The program `age` and the key alone print the content."""
    public, file = _pair(tmp_path, "key")
    (tmp_path / "content.age").write_bytes(Encryption([public]).encrypt(b"content"))
    command = ["age", "--decrypt", "--identity", file, tmp_path / "content.age"]
    assert subprocess.run(command, check=True, capture_output=True).stdout == b"content"
