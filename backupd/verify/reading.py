"""Every byte of packs, several at once, without keeping what was read."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, TypeAlias

from backupd.drill.packs import DamagedPackError, read_proven
from backupd.format.pack import PackIndex
from backupd.threads import worker_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from backupd.format.manifest import PackEntry
    from backupd.repository import Repository

_READERS = 4
_AHEAD = 2 * _READERS

Looked: TypeAlias = PackIndex | DamagedPackError | None
"""What is in a pack that is right (None: it cannot be decrypted here), or what is wrong with it."""


def read_packs(
    repository: Repository, database: str, packs: Iterable[PackEntry], should_stop: Callable[[], None]
) -> Iterator[tuple[PackEntry, Looked]]:
    """Look at each of `packs`, in their order. Raises the errors of `Store`, and what `should_stop` raises.

    `should_stop` is called before each pack, from several threads.
    """

    def look(pack: PackEntry) -> Looked:
        should_stop()
        try:
            return read_proven(repository, database, pack)
        except DamagedPackError as error:
            return error

    waiting: deque[tuple[PackEntry, Future[Looked]]] = deque()
    with worker_threads(_READERS, name="read") as threads:
        for pack in packs:
            waiting.append((pack, threads.submit(look, pack)))
            if len(waiting) == _AHEAD:
                first, looking = waiting.popleft()
                yield first, looking.result()
        while waiting:
            first, looking = waiting.popleft()
            yield first, looking.result()
