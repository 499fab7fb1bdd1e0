"""What a soak did, for people; and what is kept of one that found something."""

from __future__ import annotations

import shutil
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from faults.catalogue import FAULTS
from faults.world import SMALL_DISKS

if TYPE_CHECKING:
    from faults.soak import Soak
    from faults.world import World


def table(soak: Soak) -> str:
    """Faults by kind, then snapshots, then the verdict."""
    tally, oracle = soak.tally, soak.oracle
    rows = [(fault.name, tally.impossible.get(fault.name) or str(tally.injected[fault.name])) for fault in FAULTS]
    rows += [
        ("faults injected", str(sum(tally.injected.values()))),
        ("encrypted", "yes" if soak.is_encrypted else "no"),
        ("rounds", str(tally.rounds)),
        ("snapshots taken", str(oracle.counts["snapshots"])),
        ("restored and checked", str(oracle.counts["checked"])),
        ("reported", str(len(oracle.reported))),
        ("lost", str(oracle.counts["lost"])),
        ("violations", str(len(tally.violations))),
        ("seconds", f"{tally.seconds:.0f}"),
        ("seed", str(tally.seed)),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(["", *(f"{name:{width}}  {value}" for name, value in rows), "", *tally.violations])


def keep(world: World) -> None:
    """Copy what would be gone with the mounts and the server into the home."""
    kept = world.home / "kept"
    for name in SMALL_DISKS:
        shutil.copytree(world.home / name, kept / name, symlinks=True)
    # It may have been killed, which is then what is to be looked into.
    with suppress(BotoCoreError, ClientError), closing(world.server.server.client()) as client:
        for key, content in world.stored_objects(client).items():
            (kept / "bucket" / key).parent.mkdir(parents=True, exist_ok=True)
            (kept / "bucket" / key).write_bytes(content)
    if world.daemon is not None:
        (kept / "daemon.log").write_text("".join(world.daemon.lines))
