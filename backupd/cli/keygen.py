"""`backupd keygen`: a pair of keys for encrypted snapshots."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import click

from backupd.cli import output
from backupd.cli.verbs import Invocation, Verb, global_options
from backupd.errors import TargetExistsError, TargetUnwritableError


@click.command(
    "keygen",
    cls=Verb,
    short_help="Make a pair of keys for encrypted snapshots.",
    examples=(
        "backupd keygen",
        "backupd keygen --output backupd.key",
    ),
)
@click.option("-o", "--output", "file", metavar="FILE", type=click.Path(path_type=Path), help="Put the keys there.")
@global_options
@click.pass_obj
def command(invocation: Invocation, file: Path | None) -> None:
    """Make a pair of age keys: a public one to encrypt to, and a secret one to restore with.

    The public key goes into `[encryption] recipients` on the machine that takes the snapshots. The secret key is
    printed, or goes into FILE, which must not exist yet. Keep it away from the machine and its backups: without it,
    nothing that was encrypted can be restored. `age-keygen` makes such pairs too.
    """
    from backupd.encryption import generate_identity

    public, content = generate_identity(datetime.now().astimezone())
    if file is not None:
        _write_new(file, content)
    if invocation.is_json:
        secret = content.splitlines()[-1] if file is None else None
        path = None if file is None else str(file.absolute())
        output.print_document({"recipient": public, "identity": secret, "file": path})
        return
    if file is None:
        output.print_result(content.rstrip("\n"))
    else:
        output.print_result(public)
    output.print_hint(f'put the public key into the configuration: [encryption] recipients = ["{public}"]')


def _write_new(file: Path, content: str) -> None:
    """Write the keys durably, readable for this user alone. A failure leaves no file."""
    from backupd.system.files import flush_directory

    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise TargetExistsError(
            f"{file} exists",
            hint="a key is never overwritten: it may be the only one for older snapshots; name another",
        ) from error
    except OSError as error:
        raise TargetUnwritableError(f"{file} cannot be written: {error.strerror}", hint="name another file") from error
    try:
        with os.fdopen(descriptor, "w") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        flush_directory(file.absolute().parent)
    except OSError as error:
        file.unlink()
        raise TargetUnwritableError(f"{file} cannot be written: {error.strerror}", hint="name another file") from error
