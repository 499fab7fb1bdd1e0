"""Databases that were damaged when they were captured: what one store's drill found, for every other store.

A snapshot has the same id and content wherever it is. Each store has to know, lest its rules go on removing sound ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backupd.drill import Outcome
from backupd.errors import BackupdError, NoSuchObjectError
from backupd.format.manifest import Manifest
from backupd.format.records import Drill, DrillOutcome, encode_drill
from backupd.proofs import read_proofs
from backupd.repository.manifests import read_manifest
from backupd.store import canonical_url
from backupd.store.keys import RecordKey, RecordKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backupd.drill import DrillResult
    from backupd.format.manifest import AnyManifest
    from backupd.repository import Repository
    from backupd.upkeep.stores import RotatedStore


@dataclass(frozen=True, slots=True)
class Told:
    """The other stores (URLs) that have the snapshot and know of it now, and why others could not be told."""

    stores: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def tell_stores(result: DrillResult, stores: Iterable[RotatedStore]) -> Told:
    """Record in each other one of `stores` that has the snapshot too what `result` says: its source was damaged.

    Stores whose keys may only put are told too. What is known to be damaged there stays as it is recorded. Repeatable;
    does nothing after any other outcome. Expected failures are warnings: `rotation.damaged_sources` holds pruning from
    this machine all the same.
    """
    manifest = result.manifest
    if result.outcome is not Outcome.DAMAGED_SOURCE or manifest is None:
        return Told()
    told, warnings = [], []
    own = canonical_url(result.store)
    for rotated in stores:
        if canonical_url(rotated.url) == own:
            continue
        try:
            if _tell(result, manifest, rotated.repository):
                told.append(rotated.url)
        except BackupdError as error:
            warnings.append(
                f"{rotated.url} could not be told that snapshot {manifest.id} of {result.database} is of a damaged "
                f"database, and backupd on other machines may prune there: {error.message}"
            )
    return Told(tuple(told), tuple(warnings))


def _tell(result: DrillResult, manifest: AnyManifest, repository: Repository) -> bool:
    """Whether the store has the same snapshot, and so knows of it now."""
    if not repository.exists():
        return False
    try:
        stored = read_manifest(repository, result.database, manifest.id)
    except NoSuchObjectError:
        return False
    if not _is_same(manifest, stored):
        return False
    known = read_proofs(repository, result.database).verdict(stored)
    if known is None or not known.outcome.is_damage:
        record = Drill(
            snapshot=manifest.id,
            database=result.database,
            outcome=DrillOutcome.DAMAGED_SOURCE,
            at=result.started_at if result.earlier is None else result.earlier.at,
        )
        key = RecordKey(RecordKind.DRILL, result.database, str(manifest.id))
        repository.put_object(str(key), encode_drill(record))
    return True


def _is_same(one: AnyManifest, other: AnyManifest) -> bool:
    """Whether both are of one image, as far as that can be read here."""
    if isinstance(one, Manifest) and isinstance(other, Manifest):
        return one.image_digest == other.image_digest
    return (one.writer_id, one.image_bytes) == (other.writer_id, other.image_bytes)
