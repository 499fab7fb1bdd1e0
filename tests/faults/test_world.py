"""What the world of a soak notes of its daemon: the times at which none ran, ended or not by the soak."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

import faults.world
from faults.world import World

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class _Daemon:
    """One that does nothing."""

    has_ended: bool = False
    stderr: str = ""
    lines: list[str] = field(default_factory=list)

    @property
    def process(self) -> _Daemon:
        return self

    def poll(self) -> int | None:
        return -9 if self.has_ended else None

    def wait_for(self, event: str) -> None:
        assert event

    def stop(self) -> None:
        self.has_ended = True

    kill = stop


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world whose daemon does nothing."""
    monkeypatch.setattr(faults.world, "Daemon", lambda *_: _Daemon())
    monkeypatch.setattr(faults.world, "CommandLine", lambda *_, **__: SimpleNamespace(start=str))
    nothing = cast("Any", SimpleNamespace(runner=None))
    return World(tmp_path, nothing, {}, nothing, nothing, "", None, False, nothing, {})


def test_only_the_time_without_a_daemon_is_a_disturbance(world: World):
    """A start that no end came before notes nothing, and each end counts once."""
    world.start_daemon()
    assert world.disturbances == []
    for end in (world.stop_daemon, world.kill_daemon):
        end()
        since = world.blind_since
        world.start_daemon()
        assert (world.disturbances[-1].began, world.blind_since) == (since, None)
    world.look_for_death()
    assert (len(world.disturbances), world.blind_since) == (2, None)


def test_a_daemon_that_dies_by_itself_is_a_disturbance_from_then_on(world: World):
    """Until another one is started, even if this one is ended once more before."""
    world.start_daemon()
    cast("_Daemon", world.daemon).has_ended = True
    world.look_for_death()
    since = world.blind_since
    assert since is not None
    world.look_for_death()
    world.kill_daemon()
    world.start_daemon()
    assert [each.began for each in world.disturbances] == [since]
