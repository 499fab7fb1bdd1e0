"""Run a capture without any store, and put the image together from the packs in the spool."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backupd.capture.limits import CaptureRequest, StreamBase
from backupd.capture.process import Capture, Captured, PackReady, PagesCaptured, Pinned
from harness.packs import decode_pack

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from backupd.capture.process import Event
    from backupd.capture.worker import Workers
    from backupd.format.manifest import SourceFacts

NOTHING = StreamBase(page_size=512, hashes=None, relocate=())


@dataclass(slots=True)
class Capturing:
    """What one capture delivered: facts, and for each stream the pages (number to image) that it stored."""

    page_size: int
    page_count: int
    facts: SourceFacts
    streams: list[dict[int, bytes]]
    hashes: Path
    events: list[Event] = field(default_factory=list)

    def image(self, stream: int = 0) -> bytes:
        """The database file; pages that the stream does not have are zeros."""
        zeros = bytes(self.page_size)
        return b"".join(self.streams[stream].get(number, zeros) for number in range(1, self.page_count + 1))


def capture(
    database: Path,
    spool: Path,
    *,
    streams: Sequence[StreamBase] = (NOTHING,),
    lock_timeout: float = 5.0,
    max_lock: float = 30.0,
    deadline: float = 60.0,
    whole_bytes: int = 32 << 20,
    compare_seconds: float = 0.0,
    trusts_file: bool = True,
    on_event: Callable[[Event | None], None] = lambda _: None,
    workers: Workers | None = None,
) -> Capturing:
    """Capture `database`, by one of `workers` or by a process of its own; raises what the capture raises."""
    spool.mkdir(parents=True)
    request = CaptureRequest(
        path=str(database),
        spool=str(spool),
        streams=streams,
        level=1,
        slots=4,
        lock_timeout=lock_timeout,
        max_lock=max_lock,
        whole_bytes=whole_bytes,
        compare_seconds=compare_seconds,
        trusts_file=trusts_file,
    )
    packs: list[PackReady] = []
    events: list[Event] = []
    with Capture(workers) as running:
        for event in running.events(request, deadline=deadline):
            on_event(event)
            if isinstance(event, PackReady):
                packs.append(event)
                running.pack_left_spool()
            if isinstance(event, Pinned | Captured | PagesCaptured):
                events.append(event)
    pinned = next(event for event in events if isinstance(event, Pinned))
    pages: list[dict[int, bytes]] = [{} for _ in streams]
    for pack in sorted(packs, key=lambda pack: pack.order):
        index, images = decode_pack(pack.file.read_bytes())
        numbers = memoryview(index.page_numbers).cast("I").tolist()
        for at, number in enumerate(numbers):
            pages[pack.stream][number] = images[at * index.page_size : (at + 1) * index.page_size]
    return Capturing(pinned.page_size, pinned.page_count, pinned.facts, pages, spool / "hashes", events)


_BROKEN = """
import os, sys, threading
if "backupd.capture.child" in sys.orig_argv:
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    there, kept = os.pipe()
    os.dup2(there, 0)
    os.close(there)

    def pass_on():
        for line in requests:
            if {name!r}.encode() in line:
                os.write(1, b"no event\\n")
                os._exit(0)
            os.write(kept, line)
        os.close(kept)

    threading.Thread(target=pass_on, daemon=True).start()
"""


def breaking_captures(directory: Path, name: str) -> dict[str, str]:
    """Variables by which the process that captures a database at a path with `name` in it writes what is no event.

    No version of it does: it stands for every bug that concerns one database and no other.
    """
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(_BROKEN.format(name=name))
    return {"PYTHONPATH": str(directory)}


_NOTING = """
import os, sys
if "backupd.capture.child" in sys.orig_argv:
    open(os.path.join({directory!r}, str(os.getpid())), "w").close()
"""


def noting_captures(directory: Path) -> dict[str, str]:
    """Variables by which each process that is started to capture leaves a file in `directory`, named by its id."""
    (directory / "python").mkdir(parents=True)
    noted = directory / "started"
    noted.mkdir(mode=0o777)
    (directory / "python/sitecustomize.py").write_text(_NOTING.format(directory=str(noted)))
    return {"PYTHONPATH": str(directory / "python")}


def noted_captures(directory: Path) -> int:
    """How many processes were started to capture, as `noting_captures` has them noted."""
    return len(list((directory / "started").iterdir()))
