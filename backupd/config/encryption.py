"""To whom stored objects are encrypted, as the configuration names them."""

from typing import Annotated

from pydantic import BeforeValidator

from backupd.config.values import InvalidValueError, Table
from backupd.encryption import InvalidRecipientError, check_recipient

_MOST_RECIPIENTS = 64
"""All of them have to fit into the header of every object."""


def _recipients(value: object) -> object:
    """A list of public keys; or a text of them with commas or line ends between them, as in a variable."""
    if isinstance(value, str):
        value = [part.strip() for part in value.replace(",", "\n").splitlines() if part.strip()]
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise InvalidValueError(
            "must be a list of public keys", hint='write it like ["age1...", "ssh-ed25519 AAAA..."]'
        )
    if len(value) > _MOST_RECIPIENTS:
        raise InvalidValueError(f"{len(value)} public keys are too many", hint=f"{_MOST_RECIPIENTS} are the most")
    try:
        return tuple(check_recipient(each.strip()) for each in value)
    except InvalidRecipientError as error:
        raise InvalidValueError(error.message, hint=error.hint) from None


class EncryptionSettings(Table):
    """Public keys, each of which has a secret one that decrypts everything; none means no encryption."""

    recipients: Annotated[tuple[str, ...], BeforeValidator(_recipients)] = ()
