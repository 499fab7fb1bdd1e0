"""Whether another user could have planted a file or link on a path, judged by links, owners and modes.

A user who may write a directory decides where its names lead. Root, which may open everything, would follow such a link
to files of others, and any user would follow it to files of their own.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_ROOT = 0
_MOST_LINKS = 40
"""The kernel follows as many."""


@dataclass(frozen=True, slots=True)
class Way:
    """The target of a path: `real`, without symbolic links; `links`, those on the way; `status`, that of the file.

    `status` is None where nothing exists, or may be examined; `real` then ends with the missing names.
    """

    real: str
    links: Sequence[os.stat_result]
    status: os.stat_result | None

    def leaves(self, directory: str) -> bool:
        """Whether it leads outside `directory`, a path without symbolic links."""
        return not self.real.startswith(f"{directory.rstrip('/')}/")

    def planted(self, uid: int | None = None) -> str | None:
        """Return why another user than `uid` (None: that of this process) may have planted it; None if no other did.

        Suspicious are a link that neither root nor `uid` made, unless its maker owns what it leads to, and a second
        name of a file in a directory of a user who does not own the file.
        """
        owner = _owner_of_nearest(self.real) if self.status is None else self.status.st_uid
        for link in self.links:
            if is_foreign(link, uid) and link.st_uid != owner:
                return f"a symbolic link that uid {link.st_uid} made leads to {self.real}, which belongs to uid {owner}"
        if self.status is not None and stat.S_ISREG(self.status.st_mode) and self.status.st_nlink > 1:
            directory = status_of(os.path.dirname(self.real))  # noqa: PTH120  (plain strings, for speed)
            if directory is not None and is_foreign(directory, uid) and directory.st_uid != owner:
                return (
                    f"{self.real} belongs to uid {owner} and has another name elsewhere, and uid {directory.st_uid} "
                    "may have made this one"
                )
        return None


def way_of(path: str | os.PathLike[str], start: tuple[str, str] | None = None) -> Way:
    """Follow `path` as the kernel does. Never raises for missing or inaccessible files.

    `start` is a directory on the way, and where it leads, if that has been found before.
    """
    text = os.fspath(path)
    text = text if text.startswith("/") else f"{os.getcwd()}/{text}"  # noqa: PTH109  (as above)
    here, rest = "/", text
    if start is not None and text.startswith(f"{start[0].rstrip('/')}/"):
        here, rest = start[1], text[len(start[0].rstrip("/")) :]
    waiting = deque(rest.split("/"))
    links: list[os.stat_result] = []
    status: os.stat_result | None = None
    while waiting:
        name = waiting.popleft()
        if name in {"", "."}:
            continue
        if name == "..":
            here, status = os.path.dirname(here), None  # noqa: PTH120  (as above)
            continue
        inner = f"{here.rstrip('/')}/{name}"
        try:
            status = os.lstat(inner)
            if stat.S_ISLNK(status.st_mode):
                links.append(status)
                if len(links) > _MOST_LINKS:
                    return Way(text, links, None)
                target = os.readlink(inner)  # noqa: PTH115  (as above)
                here, status = "/" if target.startswith("/") else here, None
                waiting.extendleft(reversed(target.split("/")))
                continue
        except (OSError, ValueError):
            return Way("/".join((inner, *filter(None, waiting))), links, None)
        here = inner
    return Way(here, links, status or status_of(here))


def is_foreign(status: os.stat_result, uid: int | None = None) -> bool:
    """Whether a file belongs neither to root nor to `uid` (None: the user of this process)."""
    return status.st_uid not in {_ROOT, os.geteuid() if uid is None else uid}


def is_writable_by_others(status: os.stat_result, *, but_group: bool = False) -> bool:
    """Whether all users, or the group, may write a file; with `but_group`, the group does not count.

    Many systems give each user a private group, and new files a mode that lets it write them.
    """
    return bool(status.st_mode & (stat.S_IWOTH if but_group else stat.S_IWGRP | stat.S_IWOTH))


def _owner_of_nearest(path: str) -> int | None:
    """Return the owner of the nearest existing directory above `path`, who may replace whatever is created there."""
    return next((found.st_uid for found in _statuses_above(path)), None)


def _statuses_above(path: str) -> Iterator[os.stat_result]:
    for directory in Path(path).parents:
        if (found := status_of(str(directory))) is not None:
            yield found


def status_of(path: str) -> os.stat_result | None:
    """Return the status of `path` itself, which may be a link; None where nothing exists, or may be examined."""
    try:
        return os.lstat(path)
    except (OSError, ValueError):
        return None
