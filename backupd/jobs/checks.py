"""Drills of the configured databases, and the results of all checks: in the status, and in other stores.

A snapshot has the same id and content in every store. When a drill in one store finds its source damaged, each other
store must have a record of that, so that retention on any host does not remove sound snapshots there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import reduce
from typing import TYPE_CHECKING

from backupd.errors import BackupdError, InterruptedByUserError, NoSuchObjectError
from backupd.format.manifest import Manifest
from backupd.format.records import CheckOutcome, Drill
from backupd.health.recording import with_continuity, with_damaged_source, with_drill, without_windows
from backupd.logs import log
from backupd.store import canonical_url
from backupd.verify import CheckContext, drill, prove_continuity
from backupd.verify.continuity import has_no_segments, record_broken
from backupd.verify.recording import put_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from backupd.format import SnapshotId
    from backupd.format.manifest import AnyManifest
    from backupd.format.segment import Anchor
    from backupd.health import Status, StoreHealth
    from backupd.jobs.configured import ConfiguredDatabase, ConfiguredStore, JobContext
    from backupd.repository.archive import Archive
    from backupd.verify import CheckResult, ContinuityResult, Verification

_NEVER = datetime.min.replace(tzinfo=UTC)


def drill_next(
    configured: ConfiguredDatabase,
    stores: Sequence[ConfiguredStore],
    context: JobContext,
    *,
    others: Sequence[ConfiguredStore] = (),
    should_stop: Callable[[], None],
) -> CheckResult | None:
    """Drill the newest snapshot in the store of `stores` whose turn it is; None when none has a snapshot.

    A damaged source is reported to `stores`, and to `others`, which get no drills. Expected failures are in the result,
    and in the status. Raises `InterruptedByUserError` as `should_stop` does.
    """
    known = context.status.read().databases.get(configured.name)
    health = known.stores if known else {}
    holding = [each for each in stores if each.url in health and health[each.url].snapshot_id]
    if not holding:
        return None
    url = _next_store({each.url: health[each.url] for each in holding})
    chosen = next(each for each in holding if each.url == url)
    now, limit = datetime.now(UTC), context.settings.capture.deadline
    check = CheckContext(now=now, examination_limit=limit, should_stop=should_stop)
    result = drill(chosen.repository.archive(configured.name), check)
    if isinstance(result.error, InterruptedByUserError):
        raise result.error
    reported = report_damaged_source(result, [*stores, *others])
    for warning in reported.warnings:
        log.warning(warning)
    # A snapshot that was taken during the drill may have been built on what is damaged.
    at = now if result.error is None else datetime.now(UTC)
    due_by = configured.proof_due_after(at, context.settings.health.grace)

    def recorded(before: Status) -> Status:
        after = with_drill(before, result, at=at, proof_due_by=due_by)
        return with_damaged_source(after, result, reported.stores, at=now)  # their turn comes before this one's

    context.status.update_or_log(recorded)
    return result


def check_continuity(
    database: str,
    store: ConfiguredStore,
    context: JobContext,
    *,
    others: Iterable[ConfiguredStore],
    newest: Mapping[SnapshotId, Anchor],
    should_stop: Callable[[], None],
) -> ContinuityResult | None:
    """Check the recovery windows of one database in one store, and record the outcome in the store and in the status.

    A window that is broken is recorded in `others`, too, which have the same segments. `newest` as in
    `prove_continuity`. None when there is nothing to
    check: what was wrong with a window is over when its segments are gone. Expected failures are in the result. Raises
    what `should_stop` does.
    """
    check = CheckContext(
        now=datetime.now(UTC), examination_limit=context.settings.capture.deadline, should_stop=should_stop
    )
    archive = store.repository.archive(database)
    result = prove_continuity(archive, check, newest=newest)
    if result is None:
        if _has_broken_window(context, database, store.url) and has_no_segments(archive):
            context.status.update_or_log(lambda before: without_windows(before, database, store.url))
        return None
    context.status.update_or_log(lambda before: with_continuity(before, result))
    if result.found is not None and result.is_broken:
        for other in others:
            if reason := record_broken(other.repository.archive(database), result.found):
                log.warning("a broken window could not be recorded", database=database, store=other.url, reason=reason)
    return result


def _has_broken_window(context: JobContext, database: str, store: str) -> bool:
    known = context.status.read().databases.get(database)
    health = known.stores.get(store) if known else None
    return health is not None and health.continuity_problem is not None


def _next_store(health: Mapping[str, StoreHealth]) -> str:
    """Choose the URL of the store whose last drill was longest ago; a store that may be repaired since comes first.

    A user who has repaired a store waits for the alarm to end. But one that failed again a moment ago, although it had
    a newer snapshot, must not keep others waiting: after it, it is another's turn.
    """
    tried_at = {url: each.last_drill_at or _NEVER for url, each in health.items()}
    latest = health[max(tried_at, key=tried_at.__getitem__)].drill_failure
    has_failed_again = latest is not None and latest.count > 1
    repaired = [] if has_failed_again else [url for url, each in health.items() if _may_be_repaired(each)]
    return min(repaired or health, key=tried_at.__getitem__)


def _may_be_repaired(health: StoreHealth) -> bool:
    tried_at, snapshot_at = health.last_drill_at, health.snapshot_at
    if health.drill_failure is None or tried_at is None or snapshot_at is None:
        return False
    return tried_at < snapshot_at  # not its failure alone: one of the source outlasts drills that find bytes right


@dataclass(frozen=True, slots=True)
class Reported:
    """The other stores (URLs) that have the snapshot and a record of it now, and why others have none."""

    stores: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def report_damaged_source(result: CheckResult, stores: Iterable[ConfiguredStore]) -> Reported:
    """Record in each other one of `stores` that has the snapshot too that its source was damaged, as `result` says.

    Stores whose keys may only put are included. What is recorded as damaged there stays as it is. Repeatable; does
    nothing after any other outcome. Expected failures are warnings: pruning from this machine is held anyway.
    """
    manifest = result.manifest
    if result.outcome is not CheckOutcome.DAMAGED_SOURCE or manifest is None:
        return Reported()
    reported, warnings = [], []
    own = canonical_url(result.store)
    for store in stores:
        if canonical_url(store.url) == own:
            continue
        try:
            if _record(result, manifest, store.repository.archive(result.database)):
                reported.append(store.url)
        except BackupdError as error:
            warnings.append(
                f"it could not be recorded in {store.url} that snapshot {manifest.id} of {result.database} is of a "
                f"damaged database, and backupd on other machines may prune there: {error.message}"
            )
    return Reported(tuple(reported), tuple(warnings))


def _record(result: CheckResult, manifest: AnyManifest, archive: Archive) -> bool:
    """Record the damaged source in another archive; returns whether that has the same snapshot, and so the record."""
    if not archive.repository.exists():
        return False
    try:
        stored = archive.manifest(manifest.id)
    except NoSuchObjectError:
        return False
    if not _is_same(manifest, stored):
        return False
    known = archive.proofs().known(stored)
    if known is None or not known.outcome.is_damage:
        at = result.started_at if result.earlier is None else result.earlier.at
        put_record(
            archive,
            Drill(snapshot=manifest.id, database=result.database, outcome=CheckOutcome.DAMAGED_SOURCE, at=at),
        )
    return True


def _is_same(one: AnyManifest, other: AnyManifest) -> bool:
    """Whether both manifests are of one image, as far as they can be read here."""
    if isinstance(one, Manifest) and isinstance(other, Manifest):
        return one.image_digest == other.image_digest
    return (one.writer_id, one.image_bytes) == (other.writer_id, other.image_bytes)


def report_damaged_sources(
    results: Sequence[CheckResult], stores: Sequence[ConfiguredStore]
) -> Mapping[tuple[str, str, str], Reported]:
    """Report each of `results` to the other `stores`, as `report_damaged_source` does; by database, id and store."""
    return {_key(result): report_damaged_source(result, stores) for result in results}


def _key(result: CheckResult) -> tuple[str, str, str]:
    return result.database, str(result.id), result.store


def record_verification(
    found: Verification,
    context: JobContext,
    *,
    configured: Callable[[], Mapping[str, ConfiguredDatabase]],
    stores: Callable[[], Sequence[ConfiguredStore]],
    is_drill: bool,
) -> Verification:
    """Record a verification by hand in the status, and damaged sources in other stores.

    Returns `found` with a warning for each record that could not be made. `configured` gives the databases by name, and
    `stores` all configured stores; `is_drill` says that snapshots were restored.
    """
    warnings = [*found.warnings]
    try:
        damaged = [*found.damaged_sources, *(each for each in found.status_results if each.earlier is not None)]
        reported = report_damaged_sources(damaged, stores() if damaged else [])
        warnings += [warning for each in reported.values() for warning in each.warnings]
        record_in_status(found.status_results, configured(), context, reported=reported, is_drill=is_drill)
        if found.continuity and context.status.find() is not None:
            context.status.update(lambda before: reduce(with_continuity, found.continuity, before))
    except BackupdError as error:
        warnings.append(f"the result could not be recorded in the status: {error.message}")
    return replace(found, warnings=tuple(warnings))


def record_in_status(
    results: Sequence[CheckResult],
    configured: Mapping[str, ConfiguredDatabase],
    context: JobContext,
    *,
    reported: Mapping[tuple[str, str, str], Reported],
    is_drill: bool,
) -> None:
    """Record in the status what a verification found; nothing where neither the database nor the store is known.

    `reported` is what `report_damaged_sources` returned. That every byte is right ends an alarm about damage, but is a
    proof only when a drill found it (`is_drill`). Raises the errors of `StatusFile`.
    """
    before = context.status.find()
    meant = [each for each in results if before is not None and _changes(before, each, is_drill=is_drill)]
    if not meant:
        return

    def recorded(after: Status) -> Status:
        for result in meant:
            known = configured.get(result.database)
            # A snapshot that was taken during the check may have been built on what is damaged.
            at = result.started_at if result.error is None else datetime.now(UTC)
            due_by = known.proof_due_after(at, context.settings.health.grace) if known and is_drill else None
            after = with_drill(after, result, at=at, proof_due_by=due_by)
            elsewhere = reported.get(_key(result), Reported()).stores
            after = with_damaged_source(after, result, elsewhere, at=result.started_at)
        return after

    context.status.update(recorded)


def _changes(status: Status, result: CheckResult, *, is_drill: bool) -> bool:
    database = status.databases.get(result.database)
    health = database.stores.get(result.store) if database else None
    if health is None:
        return False
    return is_drill or health.is_damaged or result.outcome is not CheckOutcome.INTACT
