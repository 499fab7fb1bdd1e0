"""Verify snapshots: choose them, look at them store by store, and leave in the stores what was found."""

from __future__ import annotations

import math
import secrets
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from backupd.errors import BackupdError, InterruptedByUserError, NoSuchSnapshotError, StoreUnavailableError
from backupd.proofs import read_proofs
from backupd.store import canonical_url
from backupd.verify.choosing import choose, look_around
from backupd.verify.drilled import drill_each
from backupd.verify.findings import Finding, Kind
from backupd.verify.inspection import Inspection, VanishedStoreError
from backupd.verify.journal import Journal
from backupd.verify.metering import Meter, MeteredStore
from backupd.verify.recording import record_damage, record_healed, recorded_damaged
from backupd.verify.results import Level, Looked, Outcome, Verification
from backupd.verify.verdicts import verdict_on
from backupd.verify.watch import Progress, Watch

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from datetime import datetime
    from random import Random

    from backupd.config import Settings
    from backupd.format.ids import SnapshotId
    from backupd.format.manifest import PackEntry
    from backupd.proofs import Proofs
    from backupd.repository import Repository
    from backupd.state import StateDirectory
    from backupd.verify.choosing import Holding
    from backupd.verify.results import VerifyWish

_T = TypeVar("_T")
_SECONDS_BETWEEN_RECORDS = 60.0


def verify(
    repositories: Sequence[Repository],
    state: StateDirectory,
    settings: Settings,
    wish: VerifyWish,
    *,
    now: datetime,
    rate: float | None = None,
    watch: Watch | None = None,
    random: Random | None = None,
) -> Verification:
    """Look at the snapshots that are meant in all of `repositories`, and record damage in the stores.

    From here on, everything that `repositories` read is counted, and held to `rate` bytes per second. `now` is aware.
    An error of one store is in the result, and others go on. Raises `NoSuchSnapshotError` when nothing is meant, or
    the error of a store that may be the reason. Repeatable: at the level of packs, a run that was broken off is gone on
    with.
    """
    return _Verifying(
        repositories, state, settings, wish, now, rate, watch or Watch(), random or secrets.SystemRandom()
    ).run()


class _Verifying:
    def __init__(
        self,
        repositories: Sequence[Repository],
        state: StateDirectory,
        settings: Settings,
        wish: VerifyWish,
        now: datetime,
        rate: float | None,
        watch: Watch,
        random: Random,
    ) -> None:
        self._meter = Meter(rate, on_read=self._tell)
        self._repositories = repositories
        self._state = state
        self._settings = settings
        self._wish = wish
        self._now = now
        self._watch = watch
        self._random = random
        self._result = Verification()
        self._whole_bytes = self._all_packs = self._page_bytes = 0
        self._recorded_at = time.monotonic()
        self._recorded: set[Inspection] = set()
        self._drills = wish.level is Level.DRILL

    def run(self) -> Verification:
        began = time.monotonic()
        for repository in self._repositories:
            repository.store = MeteredStore(repository.store, self._meter)
        parts = [(each, self._prepared(each)) for each in self._chosen()]
        if self._wish.level is not Level.RECEIPT:
            self._whole_bytes = sum(pack.stored_bytes for _, packs in parts for pack in packs)
            self._all_packs = sum(len(packs) for _, packs in parts)
        gone: dict[str, BackupdError] = {}
        for inspection, packs in parts:
            inspection.error = inspection.error or gone.get(inspection.repository.url)
            if inspection.error is None:
                with self._failing(inspection):
                    self._inspect(inspection, packs)
            if isinstance(inspection.error, StoreUnavailableError):
                gone[inspection.repository.url] = inspection.error  # not every database is to wait for it in turn
            self._conclude(inspection)
        self._result.read_bytes = self._meter.read_bytes
        self._result.duration_seconds = time.monotonic() - began
        return self._result

    def _chosen(self) -> list[Inspection]:
        wish = self._wish
        holdings = look_around(self._repositories, wish.database)
        self._result.problems += holdings.problems
        try:
            chosen = choose(holdings.found, wish, self._now)
        except NoSuchSnapshotError as error:
            raise (*holdings.problems, error)[0] from None
        if not chosen:
            raise (*holdings.problems, self._nothing_found())[0]
        for url in holdings.empty:
            self._inform(url, "it holds no backups; if it should, see that it is mounted, and that its URL is right")
        if wish.sample is not None and wish.level is Level.DRILL:
            chosen = self._some_snapshots(chosen)
        return [Inspection(holding, ids, self._watch.should_stop) for holding, ids in chosen]

    def _nothing_found(self) -> NoSuchSnapshotError:
        whose = f" of {self._wish.database}" if self._wish.database else ""
        places = ", ".join(repository.url for repository in self._repositories)
        return NoSuchSnapshotError(
            f"no snapshots{whose} in {places}",
            hint="if there should be some, see that the store is mounted, and that its URL is right; "
            "else take one with: backupd now",
        )

    def _some_snapshots(
        self, chosen: Sequence[tuple[Holding, tuple[SnapshotId, ...]]]
    ) -> list[tuple[Holding, tuple[SnapshotId, ...]]]:
        every = [(holding, snapshot) for holding, ids in chosen for snapshot in ids]
        some = set(self._some(every))
        self._watch.on_note(f"{len(some):,} of {len(every):,} snapshots are restored, chosen by chance")
        left = [(holding, tuple(one for one in ids if (holding, one) in some)) for holding, ids in chosen]
        return [(holding, ids) for holding, ids in left if ids]

    def _some(self, every: Sequence[_T]) -> list[_T]:
        """The share that is wanted, at least one, chosen by chance."""
        share = self._wish.sample or 1.0
        return self._random.sample(every, min(len(every), max(1, math.ceil(share * len(every)))))

    def _prepared(self, inspection: Inspection) -> list[PackEntry]:
        """The packs to look at."""
        with self._failing(inspection):
            inspection.read_manifests()
            packs = inspection.find_packs()
            if self._wish.sample is None or self._wish.level is Level.DRILL:
                return packs
            some = self._some(packs)
            self._watch.on_note(
                f"{inspection.database}: {len(some):,} of {len(packs):,} packs are read, chosen by chance, "
                f"from {inspection.repository.url}"
            )
            return some
        return []

    def _inspect(self, inspection: Inspection, packs: Sequence[PackEntry]) -> None:
        match self._wish.level:
            case Level.RECEIPT:
                if reason := inspection.compare_checksums(packs):
                    self._inform(inspection.repository.url, f"sizes only: {reason}")
                self._record(inspection, right=())
            case Level.PACKS:
                with self._journal(inspection) as journal:
                    self._read(inspection, packs, journal)
                    journal.remove()
            case Level.DRILL:
                self._drill(inspection)
        try:
            inspection.find_orphans()
        except BackupdError as error:
            self._inform(inspection.repository.url, f"which packs nothing needs is not known: {error.message}")

    @contextmanager
    def _journal(self, inspection: Inspection) -> Iterator[Journal]:
        """What an earlier run has read, and this one reads; against another run that does the same."""
        wish, url = self._wish, canonical_url(inspection.repository.url)
        selection = "all" if wish.wants_all else " ".join(str(each) for each in wish.references) or "newest"
        what = f"{inspection.database} in {url}"
        is_sample = wish.sample is not None
        depth = f"{'sample' if is_sample else 'whole'} {inspection.repository.encryption.can_decrypt}"
        subject = f"{inspection.repository.id} {what} {selection} {depth}"
        with (
            self._state.lock(f"the verification of {what}", timeout=0),
            Journal(self._state.verifications(), subject, now=self._now, is_anew=wish.is_anew or is_sample) as journal,
        ):
            yield journal

    def _read(self, inspection: Inspection, packs: Sequence[PackEntry], journal: Journal) -> None:
        proofs = read_proofs(inspection.repository, inspection.database, inspection.holding.survey)
        newest = inspection.holding.history.newest_id
        inspection.known_of_newest = None if newest is None else proofs.own(newest)
        if len(journal):
            journal.forget(self._condemned(proofs, inspection))
        known = [pack for pack in packs if pack.sha256 in journal]
        self._result.packs_known += len(known)
        self._whole_bytes -= sum(pack.stored_bytes for pack in known)
        self._tell()
        if known:
            self._watch.on_note(
                f"{inspection.database}: going on: {len(known):,} of {len(packs):,} packs were read since "
                f"{journal.begun_at.astimezone():%Y-%m-%d %H:%M} from {inspection.repository.url}"
            )

        def on_read(page_bytes: int) -> None:
            self._result.packs_read += 1
            self._page_bytes += page_bytes
            if time.monotonic() - self._recorded_at > _SECONDS_BETWEEN_RECORDS:
                self._record(inspection, right=())  # whoever breaks this off is to leave what was found
            self._tell()

        inspection.read_packs([pack for pack in packs if pack.sha256 not in journal], journal, on_read)
        inspection.compare_images(journal, is_sample=self._wish.sample is not None)
        self._tell_of_ciphertext(inspection)
        self._record(inspection, right={pack.sha256 for pack in packs if pack.sha256 in journal})
        if self._wish.sample is None:
            healed = [each.id for each in inspection.results(Level.PACKS) if each.outcome is Outcome.RIGHT]
            self._warn(inspection, record_healed(inspection.holding, healed, at=self._now))

    def _condemned(self, proofs: Proofs, inspection: Inspection) -> set[str]:
        """The packs that a record says are damaged: that may have been found since an earlier run read them."""
        return {pack for manifest in inspection.manifests.values() for pack in proofs.condemned_packs(manifest)}

    def _drill(self, inspection: Inspection) -> None:
        recorded: set[SnapshotId] = set()
        inspection.known_damaged = recorded_damaged(inspection.holding)  # before drills write records of their own
        self._result.problems += drill_each(
            inspection,
            self._state,
            self._settings,
            now=self._now,
            should_stop=self._watch.should_stop,
            recorded=recorded,
        )
        self._record(inspection, right=(), already=recorded)
        self._tell_of_ciphertext(inspection)

    def _tell_of_ciphertext(self, inspection: Inspection) -> None:
        if Looked.CIPHERTEXT in inspection.looked.values():
            self._inform(
                inspection.repository.url,
                "ciphertext only: there is no key here that decrypts all packs; their SHA-256 was compared "
                "(--identity FILE names one)",
            )

    def _record(self, inspection: Inspection, *, right: Collection[str], already: Collection[SnapshotId] = ()) -> None:
        """Leave in the store what was found so far, unless the store is gone."""
        self._recorded_at = time.monotonic()
        damage = inspection.findings.damage
        if not damage:
            return
        inspection.reject_vanished_store()
        if inspection not in self._recorded and self._wish.level is not Level.DRILL:
            inspection.known_damaged = recorded_damaged(inspection.holding)
        self._recorded.add(inspection)
        self._warn(inspection, record_damage(inspection.holding, damage, at=self._now, right=right, already=already))

    def _warn(self, inspection: Inspection, reason: str | None) -> None:
        if reason is not None:
            warning = f"what was found of {inspection.database} could not be recorded in the store: {reason}"
            self._result.warnings += [warning] if warning not in self._result.warnings else []

    def _conclude(self, inspection: Inspection) -> None:
        """Take what was found of one database in one store into the result."""
        if inspection.findings.damage and inspection.error is not None:
            # What is known is to be told and recorded, whatever ended the search; but not of a store that is gone.
            with self._failing(inspection):
                self._record(inspection, right=())
        if isinstance(inspection.error, VanishedStoreError):
            inspection.findings.clear()
        if inspection.error is not None and inspection.error not in self._result.problems:
            self._result.problems.append(inspection.error)
        self._result.findings += inspection.findings.found
        self._result.snapshots += inspection.results(self._wish.level)
        verdict = verdict_on(inspection, began_at=self._now)
        self._result.verdicts += [verdict] if verdict is not None else []
        self._result.damaged_sources += inspection.damaged_sources
        if verdict is not None and verdict.earlier is not None and verdict.error is not None and not self._drills:
            self._result.warnings.append(verdict.error.message)  # nothing that was looked at here tells of it

    @contextmanager
    def _failing(self, inspection: Inspection) -> Iterator[None]:
        """Keep the error of one store from ending the others; an interruption ends all."""
        try:
            yield
        except InterruptedByUserError:
            raise
        except BackupdError as error:
            inspection.error = error

    def _inform(self, url: str, reason: str) -> None:
        """Say something about a store, once."""
        finding = Finding(kind=Kind.NOT_CHECKABLE, store=url, database=None, key="", reason=reason)
        if finding not in self._result.findings:
            self._result.findings.append(finding)

    def _tell(self) -> None:
        self._watch.on_progress(
            Progress(
                min(self._meter.pack_bytes, self._whole_bytes),
                self._whole_bytes,
                self._page_bytes,
                self._result.packs_read + self._result.packs_known,
                self._all_packs,
            )
        )
