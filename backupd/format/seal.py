"""Sealed objects: JSON with the SHA-256 of its own bytes. FORMAT.md, "Manifest", is the specification."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from backupd.format import FORMAT_VERSION, FormatError, NewerFormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_T = TypeVar("_T")
_END = b"}\n"
_decoders: dict[type[Any], msgspec.json.Decoder[Any]] = {}

Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Text = Annotated[str, Meta(max_length=4096)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")]
"""The name of a database."""


class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Base of what sealed objects consist of. JSON lacks the keys of fields that have their default.

    Values cannot be part of a cycle, so that Python's garbage collector need not look at the thousands that a long
    history has.
    """


def values_of(value: Value) -> dict[str, Any]:
    """Return the values of a sealed object as JSON has them, with the version of the format."""
    return {"format": FORMAT_VERSION, **msgspec.to_builtins(value, enc_hook=str)}


def encode_sealed(name: str, value: Value, *, last: Sequence[str] = ()) -> bytes:
    """Encode `value` as a sealed object called `name`: JSON in ASCII, one key per line.

    The keys stand in the order of the fields, but for those in `last`, which come after all others.
    """
    values = values_of(value)
    moved = {key: values.pop(key) for key in last}
    lines = (f"{json.dumps(key)}: {json.dumps(each)}" for key, each in {**values, **moved}.items())
    body = ("{\n" + ",\n".join(lines) + "\n}").encode("ascii")
    return b'{"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'","' + name.encode() + b'":' + body + _END


def decode_sealed(name: str, kind: type[_T], data: bytes) -> _T:
    """Decode a sealed object called `name`. The seal is checked first: damaged bytes are never parsed.

    Raises `FormatError` for every damage, `NewerFormatError` for a version above 1.
    """
    return decode_sealed_as(name, lambda _: kind, data)


def decode_sealed_as(name: str, kind_for: Callable[[dict[str, Any]], type[_T]], data: bytes) -> _T:
    """Decode a sealed object of one of several kinds: `kind_for` chooses by the object's keys."""
    seal = re.match(rb'\{"sha256":"([0-9a-f]{64})","' + name.encode() + b'":', data)
    if seal is None or not data.endswith(_END):
        raise FormatError(f"the object is not a sealed {name}")
    body = data[seal.end() : -len(_END)]
    if hashlib.sha256(body).hexdigest().encode() != seal[1]:
        raise FormatError(f"the {name} does not match the SHA-256 of its seal")

    return decode_versioned_as(name, kind_for, body)


def decode_versioned_as(name: str, kind_for: Callable[[dict[str, Any]], type[_T]], body: bytes) -> _T:
    """Decode JSON with the key `format` as one of several kinds; `name` is what messages call it.

    Raises `FormatError`, and `NewerFormatError` for a version above 1.
    """

    def kind_of_version(values: Any) -> type[_T]:
        _reject_other_version(name, values.get("format") if isinstance(values, dict) else None)
        return kind_for(values)

    return validated(body, kind_of_version)


def validated(body: bytes, kind_for: Callable[[Any], type[_T]]) -> _T:
    """Parse JSON as the kind that `kind_for` chooses for its values. Raises `FormatError`."""
    try:
        values = json.loads(body.decode(), object_pairs_hook=_reject_repeated_keys, parse_constant=_reject_constant)
        value: _T = _decoder(kind_for(values)).decode(body)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        raise FormatError(f"{place.strip('.`')}: {reason}".removeprefix(": ")) from error
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise error if isinstance(error, FormatError) else FormatError(f"not JSON: {error}") from error
    return value


def _decoder(kind: type[Any]) -> msgspec.json.Decoder[Any]:
    return _decoders.get(kind) or _decoders.setdefault(kind, msgspec.json.Decoder(kind, dec_hook=_of_kind))


def _of_kind(kind: type[Any], text: Any) -> Any:
    """Return the id, or other value that is written as text, that `text` stands for."""
    if not isinstance(text, str):
        raise FormatError(f"{text!r} is not text")
    return kind(text)


def _reject_other_version(name: str, version: object) -> None:
    # By exact type: to a validator, as to Python, `true` and `1.0` equal 1.
    if type(version) is not int or version < 1:
        raise FormatError(f"format: the {name} does not name its version")
    if version > FORMAT_VERSION:
        raise NewerFormatError(f"the {name} is of format version {version}")


def _reject_constant(name: str) -> None:
    raise FormatError(f"not JSON: {name} is not a number")


def _reject_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise FormatError("a key is repeated in one object")
    return values
