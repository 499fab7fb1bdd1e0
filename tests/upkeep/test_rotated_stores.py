from datetime import timedelta

import pytest
from harness.place import create_database

from backupd.config import DatabaseSettings, RetentionSettings, Settings, StoreSettings
from backupd.state import StateDirectory
from backupd.upkeep.stores import each_once, open_repositories, rotated_stores, twin_warnings


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


def test_opening_stores_asks_them_for_nothing(settings, tmp_path):
    """And makes nothing: a wrong path must not become a directory."""
    open_repositories(settings.stores, StateDirectory(tmp_path / "state"))
    assert not (tmp_path / "disk").exists()


def test_each_database_has_its_policy_in_each_store(settings, tmp_path):
    """That of the store wins over that of the database, and that over the one for all."""
    disk, bucket = rotated_stores(open_repositories(settings.stores, StateDirectory(tmp_path / "state")), settings)
    assert [disk.policy(name).keep_last for name in ("a", "b", "own")] == [3, 3, 7]
    assert [bucket.policy(name).keep_last for name in ("a", "b", "own")] == [3, 3, 7]
    assert (disk.grace("a"), bucket.grace("a")) == (timedelta(days=2), timedelta(days=30))


def test_a_database_that_is_not_configured_has_no_policy(settings, tmp_path):
    """Nothing of it is ever removed by itself; by hand, with the grace of its store."""
    disk, bucket = rotated_stores(open_repositories(settings.stores, StateDirectory(tmp_path / "state")), settings)
    assert disk.policy("other") is None
    assert (disk.grace("other"), bucket.grace("other")) == (timedelta(days=2), timedelta(days=30))


def test_policies_hold_for_what_is_there_when_they_are_looked_for(settings, tmp_path):
    """A new tenant has one, over the same repositories."""
    repositories = open_repositories(settings.stores, StateDirectory(tmp_path / "state"))
    create_database(tmp_path / "new.db", rows=1)
    before = rotated_stores(repositories, settings)
    assert before[0].policy("new").keep_last == 3
    (tmp_path / "new.db").unlink()
    after = rotated_stores(repositories, settings)
    assert after[0].policy("new") is None
    assert after[0].repository is before[0].repository


def test_one_place_in_several_spellings_is_one_store(tmp_path):
    """It has one lock and one policy: the first of them."""
    urls = [str(tmp_path / "disk"), f"{tmp_path}/./disk", f"{tmp_path}/disk/", str(tmp_path / "other")]
    found = each_once([StoreSettings(url=url) for url in urls])
    assert [store.url for store in found] == [StoreSettings(url=urls[0]).url, urls[3]]


def test_two_stores_in_one_place_are_warned_of(tmp_path):
    """Whoever has one copy is not to think that it is two."""
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    stores = [StoreSettings(url=str(tmp_path / name)) for name in ("disk", "other", "link")]
    assert [*twin_warnings(stores)] == [
        f"the stores {tmp_path}/disk and {tmp_path}/link are one directory, and count as one"
    ]
    assert [*twin_warnings(stores[:2])] == []
