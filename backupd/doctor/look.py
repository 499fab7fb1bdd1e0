"""What a look at one database gives: facts, from which `databases` judges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class FileFacts:
    """Of one file or directory: who owns it, who may use it (`mode` without its type), and its size."""

    uid: int
    gid: int
    mode: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a database cannot be backed up: the name of one of our errors, its message and its hint."""

    error: str
    message: str
    hint: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseLook:
    """One database as the process that backs it up would meet it. `real_path` has no symbolic links.

    `uid` and `gid` are those of that process. What could not be found out is None; `refusal` says why the database
    cannot be backed up, and `makes_files_of_owner` whether files that SQLite makes beside it can be its owner's.
    `index` is the `-shm` file, `device` that of the directory. `journal_mode` is SQLite's own word, or what the header
    says while it cannot be opened: `wal` or `rollback`; `image_bytes` is 0 then.

    In rollback mode, `step_seconds` is how long a writer waits for a capture that no commit interrupts, and
    `confirm_seconds` for one that commits keep interrupting, as measured.
    """

    real_path: str
    refusal: Refusal | None = None
    file: FileFacts | None = None
    wal: FileFacts | None = None
    index: FileFacts | None = None
    directory: FileFacts | None = None
    uid: int = 0
    gid: int = 0
    is_writable: bool = False
    is_directory_writable: bool = False
    makes_files_of_owner: bool = True
    is_read_only: bool | None = None
    device: int | None = None
    free_bytes: int | None = None
    has_free_inodes: bool = True
    journal_mode: str | None = None
    sqlite_version: str = ""
    is_schema_readable: bool = True
    left_out: tuple[str, ...] = ()
    """A sentence about each fact that would have taken too long."""
    image_bytes: int = 0
    step_seconds: float = 0.0
    confirm_seconds: float = 0.0

    @property
    def is_wal(self) -> bool:
        """Whether writers go on while it is read."""
        return self.journal_mode == "wal"

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Self:
        """The look that `dataclasses.asdict` has taken apart."""
        files = {name: values[name] and FileFacts(**values[name]) for name in ("file", "wal", "index", "directory")}
        refusal = values["refusal"] and Refusal(**values["refusal"])
        return cls(**{**values, **files, "refusal": refusal, "left_out": tuple(values["left_out"])})
