"""A verification: select snapshots in all stores, check archive by archive, and record the damage in the store."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING

from backupd.errors import BackupdError, InterruptedByUserError, NoSuchSnapshotError, StoreUnavailableError
from backupd.format.records import CheckOutcome
from backupd.store import canonical_url
from backupd.verify.continuity import prove_continuity
from backupd.verify.drills import drill
from backupd.verify.inspection import Inspection
from backupd.verify.journal import Journal
from backupd.verify.metering import MeteredStore, Tally
from backupd.verify.recording import Recorder, Report, VanishedStoreError, status_result
from backupd.verify.results import Depth, Level
from backupd.verify.selection import choose, list_archives, sample, sample_snapshots

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from backupd.format import SnapshotId
    from backupd.format.manifest import PackEntry
    from backupd.repository import Repository
    from backupd.repository.proofs import KnownOutcome
    from backupd.verify.results import CheckContext, Verification, VerifyRequest
    from backupd.verify.selection import Selection


@dataclass(frozen=True, slots=True)
class Run:
    """The state that the checks of all archives in one verification share."""

    request: VerifyRequest
    context: CheckContext
    tally: Tally
    report: Report


class ArchiveCheck:
    """The check of the selected snapshots of one archive: `prepare` says how much it reads, and `run` does it.

    An error of the store ends the check of this archive, and is reported; other archives are still checked.
    """

    def __init__(self, selection: Selection, run: Run) -> None:
        self._inspection = Inspection(selection, run.context.should_stop)
        self._recorder = Recorder(selection.listed, at=run.context.now)
        self._archive = selection.listed.archive
        self._run = run
        self._packs: Sequence[PackEntry] = ()
        self._error: BackupdError | None = None
        self._earlier: KnownOutcome | None = None

    def prepare(self) -> None:
        """Read the manifests, and choose and announce the packs to check."""
        request, run = self._run.request, self._run
        with self._keeping_error():
            self._inspection.read_manifests()
            self._packs = packs = self._inspection.find_packs()
            if request.sample is not None and request.level is not Level.DRILL:
                self._packs = sample(packs, request.sample, run.context.random)
                run.context.on_note(
                    f"{self._archive.database}: {len(self._packs):,} of {len(packs):,} packs are read, chosen at "
                    f"random, from {self._archive.url}"
                )
            if request.level is not Level.UPLOAD_CHECK:
                run.tally.expect(self._packs)

    def run(self, gone: dict[str, BackupdError]) -> None:
        """Check the snapshots at the level of the request, and report; nothing is read from stores that are `gone`.

        Adds the store to `gone`, with the error, when it cannot be reached: not every database should wait for it.
        """
        url = self._archive.url
        self._error = self._error or gone.get(url)
        if self._error is None:
            with self._keeping_error():
                self._check()
        if isinstance(self._error, StoreUnavailableError):
            gone[url] = self._error
        self._report()

    def _report(self) -> None:
        """Report what was found, and record damage that is not recorded yet, whatever ended the check."""
        inspection, report, now = self._inspection, self._run.report, self._run.context.now
        if self._error is not None:
            with self._keeping_error():
                self._record_damage()
        if isinstance(self._error, VanishedStoreError):
            inspection.findings.clear()  # everything looks missing in a store that has gone away
        if self._error is not None:
            report.add_problem(self._error)
        is_complete = self._error is None
        found = status_result(
            inspection,
            known_damaged=self._recorder.known_damaged,
            earlier=self._earlier,
            began_at=now.astimezone(UTC),
            is_complete=is_complete,
        )
        report.add_archive(inspection, inspection.results(self._run.request.level, is_complete=is_complete), found)
        if found and found.earlier and found.error and self._run.request.level is not Level.DRILL:
            report.add_warning(found.error.message)  # no finding of this run says it

    def _check(self) -> None:
        match self._run.request.level:
            case Level.UPLOAD_CHECK:
                if reason := self._inspection.compare_checksums(self._packs):
                    self._run.report.add_note(self._archive.url, f"sizes only: {reason}")
                self._record_damage()
            case Level.PACKS:
                with self._journal() as journal:
                    self._read_packs(journal)
                    journal.remove()
            case Level.DRILL:
                self._drill()
        try:
            self._inspection.find_orphans()
        except BackupdError as error:
            self._run.report.add_note(
                self._archive.url, f"which packs nothing needs could not be found out: {error.message}"
            )

    @contextmanager
    def _journal(self) -> Iterator[Journal]:
        """Open the journal of this selection, and keep out another run of the same."""
        request, context, repository = self._run.request, self._run.context, self._archive.repository
        selection = "all" if request.wants_all else " ".join(str(each) for each in request.references) or "newest"
        what = f"{self._archive.database} in {canonical_url(self._archive.url)}"
        is_sample = request.sample is not None
        depth = f"{'sample' if is_sample else 'whole'} {repository.encryption.can_decrypt}"
        subject = f"{repository.id} {what} {selection} {depth}"
        with (
            repository.state.lock(f"the verification of {what}", timeout=0),
            Journal(
                repository.state.verifications(), subject, now=context.now, restart=request.restart or is_sample
            ) as journal,
        ):
            yield journal

    def _read_packs(self, journal: Journal) -> None:
        inspection, tally, packs = self._inspection, self._run.tally, self._packs
        is_sample = self._run.request.sample is not None
        proofs = self._archive.proofs(inspection.listed.listing)
        newest = inspection.listed.history.newest_id
        self._earlier = None if newest is None else proofs.own(newest)
        if len(journal):  # a pack may have been found damaged since the interrupted run read it
            journal.forget(
                pack for manifest in inspection.manifests.values() for pack in proofs.known_damaged_packs(manifest)
            )
        known = [pack for pack in packs if pack.sha256 in journal]
        tally.skip(known)
        if known:
            self._run.context.on_note(
                f"{self._archive.database}: continuing: {len(known):,} of {len(packs):,} packs were read since "
                f"{journal.begun_at.astimezone():%Y-%m-%d %H:%M} from {self._archive.url}"
            )

        def on_read(page_bytes: int) -> None:
            if self._recorder.is_due:
                self._record_damage()
            tally.pack_read(page_bytes)

        inspection.read_packs([pack for pack in packs if pack.sha256 not in journal], journal, on_read)
        inspection.compare_images(journal, is_sample=is_sample)
        self._note_ciphertext()
        self._record_damage(right={pack.sha256 for pack in packs if pack.sha256 in journal})
        if not is_sample:
            results = inspection.results(Level.PACKS, is_complete=True)
            intact = [each.id for each in results if each.outcome is CheckOutcome.INTACT]
            self._warn(self._recorder.record_healed(intact))

    def _drill(self) -> None:
        inspection, context = self._inspection, self._run.context
        recorded: set[SnapshotId] = set()
        self._recorder.read_known_damaged()  # before drills write records of their own
        for snapshot in inspection.manifests:
            result = drill(self._archive, context, snapshot=snapshot)
            if isinstance(result.error, StoreUnavailableError | InterruptedByUserError):
                raise result.error
            inspection.add_drill(snapshot, result)
            if result.outcome is not CheckOutcome.INCONCLUSIVE:
                recorded.add(snapshot)
            elif result.error is not None:
                self._run.report.add_problem(result.error)
        self._record_damage(already=recorded)
        self._note_ciphertext()
        continuity = prove_continuity(self._archive, context)
        if continuity is not None and isinstance(continuity.error, StoreUnavailableError):
            raise continuity.error
        if continuity is not None:
            self._run.report.add_continuity(continuity)

    def _note_ciphertext(self) -> None:
        if Depth.CIPHERTEXT in self._inspection.depths.values():
            self._run.report.add_note(
                self._archive.url,
                "ciphertext only: no key here decrypts all packs; their SHA-256 was compared "
                "(--identity FILE names a key)",
            )

    def _record_damage(self, *, right: Collection[str] = (), already: Collection[SnapshotId] = ()) -> None:
        self._warn(self._recorder.record_damage(self._inspection.findings.damage, right=right, already=already))

    def _warn(self, reason: str | None) -> None:
        if reason is not None:
            self._run.report.add_warning(
                f"what was found of {self._archive.database} could not be recorded in the store: {reason}"
            )

    @contextmanager
    def _keeping_error(self) -> Iterator[None]:
        """Keep an error for the report; an interruption ends the whole verification."""
        try:
            yield
        except InterruptedByUserError:
            raise
        except BackupdError as error:
            self._error = error


def verify(repositories: Sequence[Repository], request: VerifyRequest, context: CheckContext) -> Verification:
    """Check the snapshots that `request` means in all of `repositories`, and record damage in the stores.

    An error of one store is in the result, and the others are checked. Raises `NoSuchSnapshotError` when no snapshot is
    meant, or the error of a store that may be the reason. Repeatable: at the level of packs, an interrupted run is
    continued.
    """
    began = time.monotonic()
    tally = Tally(request.most_bytes_per_second, context.on_progress)
    report = Report()
    metered = [each.through(MeteredStore(each.store, tally.meter)) for each in repositories]
    run = Run(request, context, tally, report)
    checks = [ArchiveCheck(selection, run) for selection in _selected(metered, run)]
    for check in checks:
        check.prepare()
    gone: dict[str, BackupdError] = {}
    for check in checks:
        check.run(gone)
    return report.finished(tally, time.monotonic() - began)


def _selected(repositories: Sequence[Repository], run: Run) -> list[Selection]:
    """Select the snapshots; reports stores that could not be listed, and those that hold no backups."""
    request, context = run.request, run.context
    candidates = list_archives(repositories, request.database)
    try:
        selections = choose(candidates.archives, request, context.now)
        if not selections:
            raise _nothing_found(repositories, request)
    except NoSuchSnapshotError as error:
        raise (*candidates.problems, error)[0] from None
    for problem in candidates.problems:
        run.report.add_problem(problem)
    for url in candidates.empty:
        run.report.add_note(url, "it holds no backups; if it should, see that it is mounted, and that its URL is right")
    if request.sample is not None and request.level is Level.DRILL:
        chosen = sample_snapshots(selections, request.sample, context.random)
        some, every = (sum(len(each.snapshots) for each in which) for which in (chosen, selections))
        context.on_note(f"{some:,} of {every:,} snapshots are restored, chosen at random")
        return chosen
    return selections


def _nothing_found(repositories: Sequence[Repository], request: VerifyRequest) -> NoSuchSnapshotError:
    whose = f" of {request.database}" if request.database else ""
    places = ", ".join(repository.url for repository in repositories)
    return NoSuchSnapshotError(
        f"no snapshots{whose} in {places}",
        hint="if there should be some, see that the store is mounted, and that its URL is right; "
        "otherwise take one with: backupd now",
    )
