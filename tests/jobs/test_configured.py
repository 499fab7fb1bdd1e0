from datetime import timedelta

import pytest
from harness.databases import entries_by_name
from harness.place import create_database

from backupd.config import DatabaseSettings, RetentionSettings, Settings, StoreSettings
from backupd.jobs.configured import configured_stores, distinct_stores, duplicate_warnings, open_repositories
from backupd.state import StateDirectory


@pytest.fixture
def settings(tmp_path):
    """Two databases found by a pattern and one with an entry of its own, in two stores with policies of their own."""
    for name in ("a", "b", "own"):
        create_database(tmp_path / f"{name}.db", rows=1)
    return Settings(
        state_dir=tmp_path / "state",
        databases=(
            DatabaseSettings(path=str(tmp_path / "*.db")),
            DatabaseSettings(path=str(tmp_path / "own.db"), retention=RetentionSettings(keep_last=7)),
        ),
        stores=(
            StoreSettings(url=str(tmp_path / "disk")),
            StoreSettings(url=str(tmp_path / "bucket"), retention=RetentionSettings(grace=timedelta(days=30))),
        ),
        retention=RetentionSettings(keep_last=3, grace=timedelta(days=2)),
    )


def test_opening_stores_creates_no_directory(settings, tmp_path):
    """Opening stores creates nothing, so that a wrong path does not become a directory."""
    open_repositories(settings.stores, StateDirectory(tmp_path / "state"))
    assert not (tmp_path / "disk").exists()


def test_each_database_has_its_policy_in_each_store(settings, tmp_path):
    """The policy of the store wins over that of the database, and both over the general one."""
    disk, bucket = configured_stores(
        open_repositories(settings.stores, StateDirectory(tmp_path / "state")),
        settings,
        entries_by_name(settings.databases),
    )
    assert [disk.policy(name).keep_last for name in ("a", "b", "own")] == [3, 3, 7]
    assert [bucket.policy(name).keep_last for name in ("a", "b", "own")] == [3, 3, 7]
    assert (disk.grace("a"), bucket.grace("a")) == (timedelta(days=2), timedelta(days=30))


def test_a_database_that_is_not_configured_has_no_policy(settings, tmp_path):
    """A database that is not configured has no policy, and the grace of its store."""
    disk, bucket = configured_stores(
        open_repositories(settings.stores, StateDirectory(tmp_path / "state")),
        settings,
        entries_by_name(settings.databases),
    )
    assert disk.policy("other") is None
    assert (disk.grace("other"), bucket.grace("other")) == (timedelta(days=2), timedelta(days=30))


def test_policies_hold_for_what_is_there_when_they_are_looked_for(settings, tmp_path):
    """A new tenant has one, over the same repositories."""
    repositories = open_repositories(settings.stores, StateDirectory(tmp_path / "state"))
    create_database(tmp_path / "new.db", rows=1)
    before = configured_stores(repositories, settings, entries_by_name(settings.databases))
    assert before[0].policy("new").keep_last == 3
    (tmp_path / "new.db").unlink()
    after = configured_stores(repositories, settings, entries_by_name(settings.databases))
    assert after[0].policy("new") is None
    assert after[0].repository is before[0].repository


def test_one_place_in_several_spellings_is_one_store(tmp_path):
    """Several spellings of one path are one store, with the settings of the first."""
    urls = [str(tmp_path / "disk"), f"{tmp_path}/./disk", f"{tmp_path}/disk/", str(tmp_path / "other")]
    found = distinct_stores([StoreSettings(url=url) for url in urls])
    assert [store.url for store in found] == [StoreSettings(url=urls[0]).url, urls[3]]


def test_two_stores_in_one_place_cause_a_warning(tmp_path):
    """Two stores in one directory cause a warning that they count as one."""
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    stores = [StoreSettings(url=str(tmp_path / name)) for name in ("disk", "other", "link")]
    assert [*duplicate_warnings(stores)] == [
        f"the stores {tmp_path}/disk and {tmp_path}/link are one directory, and count as one"
    ]
    assert [*duplicate_warnings(stores[:2])] == []


def test_a_store_that_is_opened_again_keeps_what_was_learned_of_it(settings, tmp_path):
    """A reload with the same settings asks the store for nothing that is known; with other settings, it starts over."""
    state = StateDirectory(tmp_path / "state")
    before = open_repositories(settings.stores, state)
    before[0][1].create_if_missing()
    known = before[0][1].id
    same, _ = open_repositories(settings.stores, state, before=before)
    changed = settings.stores[0].replaced(put_only=True)
    (other,) = open_repositories([changed], state, before=before)
    assert (same[1].id, other[1].id) == (known, None)
    assert same[1].store is not before[0][1].store
