"""What happens to what is stored: by another program, by a disk, or by an older copy that is brought back."""

from __future__ import annotations

import shutil
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from faults.fault import Fault, Felt

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from random import Random

    from faults.world import World

_NEWEST = 10


def _copied(world: World) -> Path:
    return shutil.copytree(world.store, world.store.with_name("copy"), copy_function=shutil.copy2)


def _swapped(world: World, other: Path) -> Path:
    """Put `other` in the place of the directory store; where that is now."""
    before = world.store.rename(world.store.with_name(f"{other.name}-before"))
    while True:
        try:
            other.rename(world.store)
        except OSError:  # a run was quicker, and has begun a new store
            shutil.rmtree(world.store)
        else:
            return before


@contextmanager
def older_copy_of_the_directory(world: World, chosen: Random) -> Iterator[Felt]:
    """The directory store is replaced by a copy from before the last snapshots."""
    older = _copied(world)
    for _ in range(2):
        world.snapshot()
    shutil.rmtree(_swapped(world, older))
    yield lambda: True


@contextmanager
def older_copy_of_the_bucket(world: World, chosen: Random) -> Iterator[Felt]:
    """The bucket's content is replaced by a copy from before the last snapshots."""
    with closing(world.server.server.client()) as client:
        older = world.stored_objects(client)
        for _ in range(2):
            world.snapshot()
        for key in world.stored_objects(client).keys() - older.keys():
            client.delete_object(Bucket=world.bucket, Key=key)
        for key, content in older.items():
            client.put_object(Bucket=world.bucket, Key=key, Body=content)
    yield lambda: True


@contextmanager
def empty_directory(world: World, chosen: Random) -> Iterator[Felt]:
    """The directory store is empty, as when its disk is not mounted; then its content is back."""
    empty = world.store.with_name("empty")
    empty.mkdir(mode=0o700)
    before = _swapped(world, empty)
    yield lambda: True
    shutil.rmtree(_swapped(world, before))


def _pack(world: World, chosen: Random) -> Path:
    """A pack that the newest snapshot of a database needs, one that older ones need too if there is one."""
    database = chosen.choice(sorted(world.writers))
    newest = max((world.store / database / "snapshots").glob("*.json"))
    packs = sorted((world.store / database / "packs").iterdir())
    text = newest.read_text()
    return chosen.choice([pack for pack in packs if pack.name.partition(".")[0] in text])


def _flip(file: Path, chosen: Random) -> None:
    content = bytearray(file.read_bytes())
    content[chosen.randrange(len(content))] ^= 1 << chosen.randrange(8)
    file.write_bytes(content)


@contextmanager
def flipped_bit_in_a_pack(world: World, chosen: Random) -> Iterator[Felt]:
    """One bit of a stored pack is wrong, in the directory store. Only backupd repairs it."""
    _flip(_pack(world, chosen), chosen)
    yield lambda: True


@contextmanager
def flipped_bit_in_a_manifest(world: World, chosen: Random) -> Iterator[Felt]:
    """One bit of the newest manifest of a database is wrong, in the directory store."""
    database = chosen.choice(sorted(world.writers))
    manifest = max((world.store / database / "snapshots").glob("*.json"))
    _flip(manifest, chosen)
    # While a manifest cannot be read nothing is swept: it has to be removed by hand.
    world.mends.append(lambda: manifest.unlink(missing_ok=True))
    yield lambda: True


@contextmanager
def deleted_pack(world: World, chosen: Random) -> Iterator[Felt]:
    """A pack is gone from the directory store."""
    _pack(world, chosen).unlink()
    yield lambda: True


@contextmanager
def deleted_segment(world: World, chosen: Random) -> Iterator[Felt]:
    """One of the newest segments is gone from the directory store."""
    newest = sorted((world.store / "wal" / "segments").glob("*/*"))[-_NEWEST:]
    chosen.choice(newest).unlink()
    yield lambda: True


FAULTS = (
    Fault(older_copy_of_the_directory, loses="disk"),
    Fault(older_copy_of_the_bucket, loses="s3"),
    Fault(empty_directory, loses="disk"),
    Fault(flipped_bit_in_a_pack),
    Fault(flipped_bit_in_a_manifest),
    Fault(deleted_pack),
    Fault(deleted_segment, loses="disk"),
)
