"""Ids that parse and print themselves."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from backupd.format import FormatError

_SNAPSHOT_ID = re.compile(r"(?P<date>[0-9]{8})T(?P<time>[0-9]{6})(?P<millisecond>[0-9]{3})Z-(?P<random>[0-9a-f]{8})")


@dataclass(frozen=True, slots=True, order=True)
class SnapshotId:
    """Names one snapshot by its time (UTC, milliseconds) and 32 random bits: `20261122T085557123Z-7f3a91c2`.

    The order of the texts is that of the times, which is for display: the newest snapshot is the one with the highest
    `sequence` in its manifest.
    """

    text: str

    def __post_init__(self) -> None:
        match = _SNAPSHOT_ID.fullmatch(self.text)
        if match is None:
            raise FormatError(f"{self.text!r} is not a snapshot id")
        try:
            datetime.strptime(match["date"] + match["time"], "%Y%m%d%H%M%S").replace(tzinfo=UTC)
        except ValueError as error:
            raise FormatError(f"{self.text!r} is not a snapshot id: no such date") from error

    @classmethod
    def new(cls, taken_at: datetime, random_bits: int) -> SnapshotId:
        """The id of a snapshot taken at `taken_at` (aware), with the low 32 of `random_bits`."""
        utc = taken_at.astimezone(UTC)
        milliseconds = utc.microsecond // 1000
        return cls(f"{utc.year:04}{utc:%m%dT%H%M%S}{milliseconds:03}Z-{random_bits & 0xFFFFFFFF:08x}")

    @property
    def taken_at(self) -> datetime:
        """When the snapshot was taken, aware, UTC, to the millisecond."""
        whole = datetime.strptime(self.text[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
        return whole.replace(microsecond=int(self.text[15:18]) * 1000)

    def __str__(self) -> str:
        return self.text
