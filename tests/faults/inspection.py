"""What stands in the stores, looked at from outside of the daemon: what is listed, restored, reported, left over."""

from __future__ import annotations

import shutil
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from harness.cli import CommandLine

from backupd.config import StoreSettings
from backupd.errors import BackupdError
from backupd.format import SnapshotId
from backupd.repository import Repository
from backupd.repository.moments import RestorePoint, find_restore_point, window_spans
from backupd.repository.windows import read_continuity
from backupd.restore import restore_to_file
from backupd.state import StateDirectory
from backupd.store import open_store
from faults.images import NotAStateError, read_state
from faults.moments import Restored, Span
from faults.oracle import Named, Standing

if TYPE_CHECKING:
    from pathlib import Path

    from backupd.repository.archive import Archive
    from faults.world import World

_OLD_ENOUGH = timedelta(hours=1, minutes=5)
_PRUNES = 4
_AHEAD_OF_EVERY_SNAPSHOT_SECONDS = 240


class Inspection:
    """Looks into the stores as a host that has nothing but them: without cached manifests, past the proxy."""

    def __init__(self, world: World, scratch: Path) -> None:
        self._world = world
        self._scratch = scratch
        self._repositories: dict[str, Repository] = {}
        self._damaged: set[Named] | None = None
        self.begin_again()

    def begin_again(self) -> None:
        """Forget what was read."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir()
        self._damaged = None
        self._repositories = {
            self._world.disk: self._repository(self._world.disk, None),
            self._world.s3: self._repository(self._world.s3, self._world.server.server.endpoint_url),
        }

    def _repository(self, url: str, endpoint_url: str | None) -> Repository:
        server = self._world.server.server
        keys = {"access_key_id": server.access_key_id, "secret_access_key": server.secret_access_key}
        values = {"url": url} if endpoint_url is None else {"url": url, "endpoint_url": endpoint_url, **keys}
        store, state = open_store(StoreSettings.read(values)), StateDirectory(self._scratch / "state")
        return Repository(store, state, self._world.encryption)

    def listed(self) -> list[Named]:
        """What `backupd list --json` shows."""
        return self._named("snapshots", "list", "--json")

    def standing(self, snapshot: Named) -> Standing:
        """Whether it is still listed, or else in the trash."""
        if snapshot in self.listed():
            return Standing.LISTED
        is_in_trash = snapshot in self._named("trash", "list", "--trash", "--json")
        return Standing.REMOVED if is_in_trash else Standing.VANISHED

    def _named(self, table: str, *arguments: str) -> list[Named]:
        found = self._world.run(*arguments).document[table]
        return [Named(each["store"], each["database"], each["id"]) for each in found]

    def restore(self, snapshot: Named, target: Path) -> str | None:
        """Restore to `target`; why it could not be done."""
        repository = self._repositories[snapshot.store]
        try:
            manifest = repository.archive("app").opened(
                repository.archive(snapshot.database).manifest(SnapshotId(snapshot.id))
            )
            restore_to_file(
                RestorePoint(repository.archive(manifest.database), manifest),
                target,
                force=False,
                as_source=False,
                on_progress=lambda _: None,
            )
        except BackupdError as error:
            return error.message
        return None

    def archive(self, store: str, database: str) -> Archive:
        """Everything that a store has of a database."""
        return self._repositories[store].archive(database)

    def spans(self, store: str, database: str) -> list[Span]:
        """The recovery windows, as `backupd list` shows them."""
        archive = self.archive(store, database)
        listing = archive.listing()
        return [
            Span(span.began_at, span.window.ended_at, span.broken and span.broken.reason)
            for span in window_spans(archive, listing, listing.manifests.keys(), read_continuity(archive, listing))
        ]

    def restore_moment(self, store: str, database: str, at: datetime) -> Restored:
        """Restore the state at a time to a file, and read that."""
        target = self._scratch / "moment.db"
        target.unlink(missing_ok=True)
        try:
            point = find_restore_point([self._repositories[store]], at.isoformat(), database=database, now=at)
            restore_to_file(point, target, force=False, as_source=False, on_progress=lambda _: None)
            return Restored(read_state(target), point.replay is not None, point.gap and point.gap.reason)
        except BackupdError as error:
            return Restored(None, problem=error.message)
        except NotAStateError as error:
            return Restored(None, problem=str(error))

    def recovery_points(self) -> dict[tuple[str, str], datetime]:
        """What `backupd status --json` shows, by store and database."""
        shown = self._world.run("status", "--json").document["status"]["recovery_points"]
        return {
            (store, database): datetime.fromisoformat(at)
            for database, points in shown.items()
            for store, at in points.items()
            if at is not None
        }

    def is_reported(self, snapshot: Named) -> bool:
        """Whether `backupd verify`, which restores everything to scratch at this level, says that it is damaged."""
        if self._damaged is None:
            found = self._world.run("verify", "--all", "--level", "drill", "--json").document["findings"]
            self._damaged = {
                Named(each["store"], each["database"], snapshot_id)
                for each in found
                if each["is_damage"]
                for snapshot_id in each["snapshots"]
            }
        return snapshot in self._damaged

    def leftovers(self) -> list[str]:
        """What the stores still hold, after enough prunes a grace apart, that no snapshot needs."""
        world = self._world
        for mend in world.mends:
            mend()
        world.mends.clear()
        problems = []
        # What damage was found holds rotation until something newer is proven; the daemon would do that in its time.
        world.snapshot("--full")
        world.run("verify", "--level", "drill")
        for number in range(_PRUNES):
            world.age_stores(_OLD_ENOUGH)
            if number == 0:
                for database in sorted(world.writers):
                    self._pruned(database, "--accept-shrink")
            problems += self._pruned("--json")
        self.begin_again()
        for url, repository in self._repositories.items():
            problems += [f"{url} still holds {each}" for each in self._unneeded(repository)]
        problems += [f"{path} is left of an upload" for path in world.store.glob(".incoming/*")]
        return problems

    def _pruned(self, *arguments: str) -> list[str]:
        """A prune after every time that a snapshot can be dated; what is wrong with it."""
        world = self._world
        if world.clock is None or time.monotonic() > world.ahead_until:
            finished = world.run("prune", *arguments)
        else:
            world.clock.set(_AHEAD_OF_EVERY_SNAPSHOT_SECONDS)
            finished = world.run_as(CommandLine(world.home, runner=world.by_the_clock), "prune", *arguments)
            world.clock.set(0)
        if finished.code == 0:
            return []
        return [f"prune {' '.join(arguments)} ended with {finished.code}: {finished.stdout}{finished.stderr}"]

    def _unneeded(self, repository: Repository) -> list[str]:
        unneeded = []
        for database in self._world.writers:
            holdings = repository.archive(database).holdings()
            survey = holdings.listing
            manifests = survey.manifests.keys()
            unneeded += [f"pack {each}, which nothing names" for each in survey.packs.keys() - holdings.named_packs]
            unneeded += [f"the record of a deletion {each.key}" for each in survey.deletions.values()]
            unneeded += [f"trash {each}" for each in survey.trash.keys() - manifests]
        return unneeded
