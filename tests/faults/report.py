"""What a soak did, for people; and what is kept of one that found something."""

from __future__ import annotations

import shutil
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from faults.world import SMALL_DISKS

if TYPE_CHECKING:
    from pathlib import Path

    from faults.fault import Fault
    from faults.soak import Soak, Tally
    from faults.world import World


def table(soak: Soak) -> str:
    """The report in Markdown: the faults by kind, what the run reached, the snapshots; then what was violated."""
    tally, oracle = soak.tally, soak.oracle
    commits, not_reached = soak.moments.counts, soak.not_reached
    rows = [
        *((fault.name, _injected(tally, fault)) for fault in soak.faults),
        ("**rounds**", str(tally.rounds)),
        ("**faults injected**", str(sum(tally.injected.values()))),
        ("**kinds of faults injected**", f"{len(+tally.injected)} of {len(soak.faults)}"),
        ("**kinds not reached in this time**", str(len(not_reached))),
        ("**kinds not possible on this machine**", str(len(tally.impossible))),
        ("**snapshots taken**", str(oracle.counts["snapshots"])),
        ("**restored and checked**", str(oracle.counts["checked"])),
        ("**removed by rotation while that was done**", str(oracle.counts["removed meanwhile"])),
        ("**reported as damaged**", str(len(oracle.reported))),
        ("**commits in windows, in both stores**", str(commits["commits in windows"])),
        ("**commits put together and checked**", str(commits["commits checked"])),
        ("**commits in gaps**", str(commits["commits in gaps"])),
        ("**moments restored and checked**", str(commits["moments restored"])),
        ("**moments in gaps**", str(commits["moments in gaps"])),
        ("**longest until a commit was seen**", f"{soak.moments.slowest:.1f} s"),
        ("**recovery points checked**", str(commits["recovery points"])),
        ("**most that one was ahead of its store**", f"{soak.moments.slowest_point:.1f} s"),
        ("**longest until they passed a fault**", f"{tally.slowest_point:.0f} s"),
        ("**searches for what nothing needs**", str(tally.tidied)),
        ("**lost**", str(oracle.counts["lost"])),
        ("**violations**", str(len(tally.violations))),
        ("**longest way back to green**", f"{tally.slowest_green:.0f} s"),
        ("**encrypted**", "yes" if soak.is_encrypted else "no"),
        ("**seconds**", f"{tally.seconds:.0f}"),
        ("**seed**", str(tally.seed)),
    ]
    names, values = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [f"| {name:{names}} | {value:{values}} |" for name, value in [("what", "how often"), *rows]]
    lines.insert(1, f"|{'-' * (names + 2)}|{'-' * (values + 2)}|")
    reached = ", ".join(fault.name for fault in not_reached)
    after = [f"Not reached in this time: {reached}.", ""] if reached else []
    return "\n".join(["", *lines, "", *after, *tally.violations])


def _injected(tally: Tally, fault: Fault) -> str:
    if fault.name in tally.impossible:
        return f"not possible: {tally.impossible[fault.name]}"
    if not tally.turns[fault.name]:
        return "not reached"
    return str(tally.injected[fault.name]) if tally.injected[fault.name] else "never felt"


def keep(world: World) -> None:
    """Stop everything, and copy what would be gone with the mounts and the server: the files there, and the bucket."""
    for writer in world.writers.values():
        writer.kill()
    world.kill_daemon()
    if world.disks:
        for name in SMALL_DISKS:
            shutil.copytree(world.home / name, _kept(world.home, name), symlinks=True, copy_function=shutil.copy2)
    # It may have been killed, which is then what is to be looked into.
    with suppress(BotoCoreError, ClientError), closing(world.server.server.client()) as client:
        for key, content in world.stored_objects(client).items():
            file = world.home / "bucket" / key
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


def put_in_place(home: Path) -> None:
    """Put what `keep` copied where it was while the file systems were mounted; called after the world's end."""
    for name in SMALL_DISKS:
        if _kept(home, name).exists():
            (home / name).rmdir()
            _kept(home, name).rename(home / name)


def _kept(home: Path, name: str) -> Path:
    return home / f"{name}.kept"
