"""What a check of a recovery window comes to in the status, and in other stores."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from harness.following import Followed

from backupd.config import Settings
from backupd.health import DatabaseHealth, Status, StatusFile, StoreHealth
from backupd.jobs.checks import check_continuity
from backupd.jobs.configured import ConfiguredStore
from backupd.repository import Repository
from backupd.repository.windows import read_continuity
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore

if TYPE_CHECKING:
    from datetime import timedelta
    from pathlib import Path

    from backupd.verify import ContinuityResult


def test_a_broken_window_is_known_everywhere_until_it_is_gone(tmp_path: Path) -> None:
    """The status and the other store say so; when no segment is left in the store, the status does not."""
    followed = Followed(tmp_path)
    followed.execute("CREATE TABLE notes (text)")
    followed.snapshot()
    followed.miss("INSERT INTO notes VALUES ('missed')")
    followed.execute("CREATE TABLE other (text)")
    followed.snapshot()
    followed.cut()
    followed.close()
    shutil.copytree(tmp_path / "backups", tmp_path / "copy")
    shutil.copytree(tmp_path / "backups", tmp_path / "empty")
    shutil.rmtree(tmp_path / "empty/app/segments")
    state = StateDirectory(tmp_path / "daemon")
    store, copy, empty = (
        ConfiguredStore(Repository(DirectoryStore(tmp_path / name), state), {}, _grace())
        for name in ("backups", "copy", "empty")
    )
    status = StatusFile(state)
    health = DatabaseHealth(path=str(followed.path), stores={store.url: StoreHealth()})
    status.update(lambda _: Status(databases={"app": health}))
    context: Any = SimpleNamespace(settings=Settings(), status=status)

    def check() -> ContinuityResult | None:
        return check_continuity("app", store, context, others=[copy, empty], newest={}, should_stop=lambda: None)

    def known() -> StoreHealth:
        return status.read().databases["app"].stores[store.url]

    found = check()
    assert found is not None
    assert found.is_broken
    problem = known().continuity_problem
    assert problem is not None
    assert "do not give snapshot" in problem.message
    assert (known().continuity_window, known().is_window_broken) == (str(found.window), True)
    assert read_continuity(copy.repository.archive("app")) == {found.window: found.found}
    assert read_continuity(empty.repository.archive("app")) == {}
    shutil.rmtree(tmp_path / "backups/app/segments")
    assert check() is None
    assert (known().continuity_problem, known().continuity_window, known().is_window_broken) == (None, None, False)


def _grace() -> timedelta:
    return Settings().retention.grace
