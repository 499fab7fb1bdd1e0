"""Stored bytes that changed: found, named with the snapshots that need them, and never restored."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from harness.cli import finish
from harness.damage import flip
from harness.extent import sampled
from harness.place import change_rows, content_digest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.place import Place

DAMAGE_FOUND = 20


def _swap(file: Path) -> None:
    other = next(pack for pack in file.parent.iterdir() if pack != file)
    content = file.read_bytes()
    file.write_bytes(other.read_bytes())
    other.write_bytes(content)


_DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped bit in the magic": lambda pack: flip(pack, 0),
    "flipped bit in a page number": lambda pack: flip(pack, 25),
    "flipped bit in a page hash": lambda pack: flip(pack, 24 + 4 * 80 + 3),
    "flipped bit in the pages": lambda pack: flip(pack, pack.stat().st_size // 2),
    "flipped bit in the checksum": lambda pack: flip(pack, -1),
    "one byte less": lambda pack: pack.write_bytes(pack.read_bytes()[:-1]),
    "one byte more": lambda pack: pack.write_bytes(pack.read_bytes() + b"\0"),
    "empty": lambda pack: pack.write_bytes(b""),
    "missing": lambda pack: pack.unlink(),
    "another pack's content": _swap,
}


def _packs(place: Place, number: int) -> list[str]:
    return [pack["sha256"] for pack in json.loads(place.manifest(number).read_text())["manifest"]["packs"]]


def _shared_pack(place: Place) -> str:
    """The pack that the first two snapshots need, and the third does not."""
    (shared,) = set(_packs(place, 0)) & set(_packs(place, 1)) - set(_packs(place, 2))
    return shared


def _damaged_copies(place: Place) -> dict[str, str]:
    """Copy the store for each kind of damage to its shared pack; the names of the copies by kind."""
    names = {}
    for number, (kind, damage) in enumerate(_DAMAGE.items()):
        names[kind] = f"store-{number}"
        shutil.copytree(place.store, place.home / names[kind])
        damage(place.home / names[kind] / f"app/packs/{_shared_pack(place)}.zst")
    return names


def test_damaged_pack_is_never_restored(place: Place) -> None:
    """A damaged pack restores no file; the error names the snapshots that need it, and the hint one that does not."""
    commands = []
    for store in _damaged_copies(place).values():
        restore = ["restore", "second", "--store", store, "--to", f"{store}.db"]
        if store.endswith(("3", "8")):
            shutil.copy(place.database, place.home / f"{store}.db")
            restore.append("--force")
        commands.append((restore, DAMAGE_FOUND, [_shared_pack(place), place.home / store, *place.ids[:2]]))
    for result in place.backupd.refusals(commands):
        assert place.ids[2] in result.reported("hint")[0]


def test_snapshots_that_do_not_need_a_missing_pack_restore(place: Place) -> None:
    """Without a shared pack another snapshot restores, and the next one is whole."""
    (place.store / f"app/packs/{_shared_pack(place)}.zst").unlink()
    error = place.backupd.json("restore", "first", "--to", "first.db", code=DAMAGE_FOUND)["error"]
    assert error["exit_code"] == DAMAGE_FOUND
    assert place.ids[0] in error["message"]
    assert error["hint"]
    place.backupd.run("restore", "full", "--to", "full.db")
    assert content_digest(place.home / "full.db") == content_digest(place.database)
    change_rows(place.database, "after the loss")
    place.backupd.run("now", "app.db")
    place.backupd.run("restore", "latest", "--to", "latest.db")
    assert content_digest(place.home / "latest.db") == content_digest(place.database)


@pytest.mark.parametrize("is_cached", sampled([True, False]), ids=["cached", "on another host"])
def test_what_verify_found_is_stored_again_by_the_next_snapshot(place: Place, *, is_cached: bool) -> None:
    """Although nothing has changed, and on a machine that knows of it by the store alone; `list` marks it."""
    (pack,) = _packs(place, 2)
    flip(place.store / f"app/packs/{pack}.zst", 5000)
    place.backupd.run("verify", "latest", "--level", "packs", code=DAMAGE_FOUND)
    assert ["DAMAGED" in row for row in place.backupd.run("list").stdout.splitlines()[2:]] == [False, False, True]
    if not is_cached:
        shutil.rmtree(place.backupd.state)
    said = place.backupd.run("now", "app.db").stdout
    assert "1 damaged pack was stored again" in said
    place.backupd.run("verify", "latest", "--level", "drill")
    place.backupd.run("restore", "latest", "--to", "healed.db")
    assert content_digest(place.home / "healed.db") == content_digest(place.database)
    assert "unchanged" in place.backupd.run("now", "app.db").stdout


@pytest.mark.parametrize("is_cached", sampled([True, False]), ids=["cached", "on another host"])
def test_damaged_manifest_of_the_newest_snapshot(place: Place, *, is_cached: bool) -> None:
    """`latest` is refused rather than an older snapshot handed out for it; older ones restore by their ids."""
    flip(place.manifest(2), 300)
    if not is_cached:
        shutil.rmtree(place.backupd.state)
    place.backupd.refusals(
        [
            (["restore", reference, "--to", "x.db"], DAMAGE_FOUND, [place.ids[2], place.store])
            for reference in (("latest", "0s") if is_cached else ("full", place.ids[2]))
        ]
    )
    place.backupd.run("restore", place.ids[1], "--to", "older.db")
    listed = place.backupd.run("list", code=DAMAGE_FOUND)
    assert [each in listed.stdout for each in place.ids] == [True, True, False]
    (error,), (hint,) = listed.reported("error"), listed.reported("hint")
    assert place.ids[2] in error
    assert hint


def test_any_damage_of_a_manifest_hides_no_other(place: Place) -> None:
    """The others are listed, and the next snapshot is taken, with a warning."""
    whole = place.manifest(1).read_bytes()
    damaged = {"cut": whole[:-40], "longer": whole + b" ", "garbage": b"{}", "other": place.manifest(0).read_bytes()}
    shutil.rmtree(place.backupd.state)
    for name, content in damaged.items():
        shutil.copytree(place.store, place.home / name)
        (place.home / name / place.manifest(1).relative_to(place.store)).write_bytes(content)
    processes = [place.backupd.start("list", "--store", name, "--json") for name in damaged]
    for process in processes:
        listed = finish(process, code=DAMAGE_FOUND).document
        assert [each["id"] for each in listed["snapshots"]] == [place.ids[0], place.ids[2]]
        assert [place.ids[1] in problem["message"] for problem in listed["problems"]] == [True]
    (result,) = place.backupd.json("now", "app.db", "--store", "cut", "--tag", "after")["snapshots"]
    assert result["outcome"] == "created"
    assert [place.ids[1] in warning for warning in result["warnings"]] == [True]
