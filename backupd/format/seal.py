"""Sealed objects: JSON with the SHA-256 of its own bytes. FORMAT.md, "Manifest", is the specification."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import Field, PlainSerializer, PlainValidator, TypeAdapter, ValidationError

from backupd.format import FORMAT_VERSION, FormatError, NewerFormatError
from backupd.format.ids import SnapshotId

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")
_END = b"}\n"

Id = Annotated[
    SnapshotId,
    PlainValidator(lambda value: value if isinstance(value, SnapshotId) else SnapshotId(str(value))),
    PlainSerializer(str),
]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}\z")]
Text = Annotated[str, Field(max_length=4096)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\z")]
"""Of a database."""


def encode_sealed(name: str, adapter: TypeAdapter[_T], value: _T) -> bytes:
    """The object called `name` around `value`: JSON in ASCII, one key a line."""
    values: dict[str, Any] = adapter.dump_python(value, mode="json")
    lines = (f"{json.dumps(key)}: {json.dumps(each)}" for key, each in values.items())
    body = ("{\n" + ",\n".join(lines) + "\n}").encode("ascii")
    return b'{"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'","' + name.encode() + b'":' + body + _END


def decode_sealed(name: str, adapter: TypeAdapter[_T], data: bytes) -> _T:
    """What an object called `name` says. The seal is checked first: nothing is parsed that is not what was written.

    Raises `FormatError` for every damage, `NewerFormatError` for a version above 1.
    """
    return decode_sealed_as(name, lambda _: adapter, data)


def decode_sealed_as(name: str, adapter_for: Callable[[dict[str, Any]], TypeAdapter[_T]], data: bytes) -> _T:
    """As `decode_sealed`, for an object of several kinds: `adapter_for` chooses one by the object's keys."""
    seal = re.match(rb'\{"sha256":"([0-9a-f]{64})","' + name.encode() + b'":', data)
    if seal is None or not data.endswith(_END):
        raise FormatError(f"the object is not a sealed {name}")
    body = data[seal.end() : -len(_END)]
    if hashlib.sha256(body).hexdigest().encode() != seal[1]:
        raise FormatError(f"the {name} does not have the SHA-256 that it is sealed with")

    def adapter_of_version(values: Any) -> TypeAdapter[_T]:
        _reject_other_version(name, values.get("format") if isinstance(values, dict) else None)
        return adapter_for(values)

    return validated(body, adapter_of_version)


def validated(body: bytes, adapter_for: Callable[[Any], TypeAdapter[_T]]) -> _T:
    """What JSON says, by the adapter that `adapter_for` chooses for its values. Raises `FormatError`."""
    try:
        values = json.loads(body.decode(), object_pairs_hook=_reject_repeated_keys, parse_constant=_reject_constant)
        return adapter_for(values).validate_json(body, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise FormatError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, FormatError) else FormatError(f"not JSON: {error}") from error


def _reject_other_version(name: str, version: object) -> None:
    # By exact type: to a validator, as to Python, `true` and `1.0` equal 1.
    if type(version) is not int or version < 1:
        raise FormatError(f"format: the {name} does not say its version")
    if version > FORMAT_VERSION:
        raise NewerFormatError(f"the {name} is of format version {version}")


def _reject_constant(name: str) -> None:
    raise FormatError(f"not JSON: {name} is no number")


def _reject_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise FormatError("a key stands twice in one object")
    return values
