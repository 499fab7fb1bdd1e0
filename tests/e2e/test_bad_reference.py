"""Snapshots that are not there, or not clear: the error repeats what was asked for, the hint has what to ask for."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from harness.extent import slow

if TYPE_CHECKING:
    from harness.place import Place

USAGE, NO_SUCH_SNAPSHOT = 2, 12


_MEAN_NOTHING = {
    "20200101": NO_SUCH_SNAPSHOT,
    "latest~3": NO_SUCH_SNAPSHOT,
    "before-upgrade": NO_SUCH_SNAPSHOT,
    "2020-01-01T00:00": NO_SUCH_SNAPSHOT,
    "300d": NO_SUCH_SNAPSHOT,
    "nosuch@latest": NO_SUCH_SNAPSHOT,
    "%%%": USAGE,
    "2026-13-45T08:00": USAGE,
}


@slow
def test_unknown_snapshot_is_an_error_and_restores_nothing(place: Place) -> None:
    """Every form of a reference may mean nothing; a restore of it makes no file."""
    place.backupd.refusals(
        [
            (["restore", reference, "--to", "restored.db"], code, [reference.partition("@")[0] or reference])
            for reference, code in _MEAN_NOTHING.items()
        ]
    )


@slow
def test_ambiguous_beginning_of_an_id(place: Place) -> None:
    """The ids that begin like this are in the hint."""
    result = place.backupd.refusal("show", place.ids[0][:4], code=NO_SUCH_SNAPSHOT, names=[place.ids[0][:4], "3"])
    assert all(each in result.reported("hint")[0] for each in place.ids)


def test_several_databases_in_one_store(place: Place) -> None:
    """`latest`, an age and a tag that two databases have need a name before them, or --database."""
    shutil.copy(place.database, place.home / "other.db")
    place.backupd.run("now", "other.db", "--tag", "first")
    references = ["latest", "first"]
    results = place.backupd.refusals(
        [(["show", reference], NO_SUCH_SNAPSHOT, ["app", "other"]) for reference in references]
    )
    for reference, result in zip(references, results, strict=True):
        assert f"app@{reference}" in result.reported("hint")[0]
    assert place.backupd.json("show", "other@first")["snapshot"]["database"] == "other"
    place.backupd.refusal("show", "app@latest", "--database", "other", code=USAGE, names=["app", "other"])


def test_unknown_snapshot_as_json(place: Place) -> None:
    """The error is the document, and the same as on stderr."""
    text = place.backupd.refusal("show", "nosuch", code=NO_SUCH_SNAPSHOT, names=["nosuch", place.store])
    (error,), (hint,) = text.reported("error"), text.reported("hint")
    document = place.backupd.json("show", "nosuch", code=NO_SUCH_SNAPSHOT)
    assert document == {"error": {"message": error, "hint": hint, "exit_code": NO_SUCH_SNAPSHOT}}


def test_store_without_backups_is_an_error_and_stays_empty(place: Place) -> None:
    """A wrong directory is no empty history, and is not made into a store by looking."""
    nowhere = place.home / "nowhere"
    place.backupd.refusals(
        [
            (["show", "latest", "--store", "nowhere"], NO_SUCH_SNAPSHOT, [nowhere]),
            (["list", "app", "--store", "nowhere"], NO_SUCH_SNAPSHOT, ["app", nowhere]),
        ]
    )
    assert not nowhere.exists()
