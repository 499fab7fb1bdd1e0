"""Places to which nothing can be restored: exit code 2, and what is there stays as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.cli import CommandLine, Runner
from harness.confinement import private_mounts, shared_directory
from harness.place import create_database

if TYPE_CHECKING:
    from harness.place import Place

USAGE = 2


def test_target_that_is_in_use_or_out_of_reach_is_refused(place: Place) -> None:
    """A target that exists, has a leftover beside it, or is in a missing directory is refused."""
    home = place.home
    (home / "directory").mkdir()
    (home / "link.db").symlink_to("nowhere.db")
    for suffix in ("wal", "journal"):
        (home / f"{suffix}.db-{suffix}").write_bytes(b"left over")
    refused = {
        "app.db": f"{home}/app.db exists already",
        "link.db": f"{home}/link.db exists already",
        "directory": f"{home}/directory is a directory",
        "wal.db": f"{home}/wal.db-wal is left",
        "journal.db": f"{home}/journal.db-journal is left",
        "nowhere/app.db": f"{home}/nowhere does not exist",
    }
    place.backupd.refusals(
        [(["restore", "latest", "--to", target], USAGE, [words]) for target, words in refused.items()]
    )


def test_force_replaces_files_only(place: Place) -> None:
    """A restore with --force refuses to replace a directory or a dangling link."""
    (place.home / "directory").mkdir()
    (place.home / "dangling.db").symlink_to("nowhere/app.db")
    (place.home / "loop.db").symlink_to("loop.db")
    place.backupd.refusals(
        [
            (["restore", "latest", "--to", target, "--force"], USAGE, [place.home])
            for target in ("directory", "dangling.db", "loop.db")
        ]
    )


def test_force_does_not_part_a_database_from_its_log(place: Place) -> None:
    """What was committed may be in the log only; none that is there is lost."""
    (place.home / "app.db-wal").write_bytes(b"committed")
    place.backupd.refusal("restore", "first", "--to", "app.db", "--force", code=USAGE, names=["app.db-wal"])


def test_configured_database_is_not_replaced_without_a_confirmation(place: Place) -> None:
    """A configured database is not replaced without --yes where no terminal can ask, however it is named."""
    (place.home / "backupd.toml").write_text("[[databases]]\npath = 'app.db'\n")
    place.backupd.refusals(
        [
            (["restore", "first"], USAGE, [place.database, "no terminal"]),
            (["restore", "first", "--replace", "--app-stopped"], USAGE, [place.database, "no terminal"]),
            (["restore", "first", "--force"], USAGE, ["--to"]),
            (["restore", "first", "--to", "app.db", "--force"], USAGE, [place.database, "configured"]),
            (["restore", "first", "--to", "../home/app.db", "--force"], USAGE, ["app.db", "configured"]),
        ]
    )


def test_live_database_that_cannot_be_written_is_refused(place: Place) -> None:
    """A directory in place of the database, or a database on a read-only volume, is refused."""
    (place.home / "directory").mkdir()
    (place.home / "backupd.toml").write_text("[[databases]]\nname = 'app'\npath = 'directory'\n")
    place.backupd.refusal("restore", "first", "--yes", code=USAGE, names=[place.home / "directory", "not a regular"])
    with private_mounts() as mounts:
        mounted = place.home / "volume"
        mounted.mkdir()
        create_database(mounted / "app.db", rows=5)
        (place.home / "backupd.toml").write_text("[[databases]]\npath = 'volume/app.db'\n")
        mounts.mount("--bind", mounted, mounted)
        mounts.mount("-o", "remount,ro,bind", mounted)
        backupd = CommandLine(place.home, runner=mounts.runner())
        backupd.refusal("restore", "first", "--yes", code=USAGE, names=[mounted / "app.db", "read-only"])


def test_directory_of_another_user(other_user: Runner) -> None:
    """What a user may not write is said before anything is fetched."""
    with shared_directory() as home:
        (home / "own").mkdir()
        (home / "own").chmod(0o777)
        create_database(home / "app.db", rows=5)
        backupd = CommandLine(home, state="own/state", runner=other_user)
        backupd.run("now", "app.db", "--store", "own/store")
        refused = backupd.refusal(
            "restore", "latest", "--store", "own/store", "--to", "restored.db", code=USAGE, names=[home, "65534"]
        )
        assert "--to FILE" in refused.reported("hint")[0]


def test_disk_that_is_too_small(place: Place) -> None:
    """Found before anything is written, as the size is known."""
    with private_mounts() as mounts:
        small = place.home / "small"
        small.mkdir()
        mounts.mount("-t", "tmpfs", "-o", "size=100k", "none", small)
        backupd = CommandLine(place.home, runner=mounts.runner())
        backupd.refusal("restore", "latest", "--to", "small/app.db", code=USAGE, names=[small, "free"])
        assert list(mounts.seen(small).iterdir()) == []


def test_space_that_runs_out_on_the_way(place: Place) -> None:
    """A limit on the size of files stands in for a disk that others fill meanwhile; an old target stays."""
    backupd = CommandLine(place.home, runner=Runner(become=("prlimit", "--fsize=100000", "--")))
    backupd.refusals(
        [
            (["restore", "latest", "--to", "new.db"], USAGE, [place.home / "new.db"]),
            (["restore", "latest", "--to", "app.db", "--force"], USAGE, [place.database]),
        ]
    )
