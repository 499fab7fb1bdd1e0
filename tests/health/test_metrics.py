from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from harness.statuses import (
    BUCKET,
    DISK,
    DOWN,
    HOUR,
    MINUTE,
    NOON,
    alarms_of,
    drilled,
    failed,
    healthy,
    recorded,
    snapshot_id,
    with_times,
)
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from backupd import __version__
from backupd.health import Status, metrics
from backupd.health.metrics import CONTENT_TYPE, metrics_text
from backupd.health.planning import with_entry_problem, with_running, with_vanished
from backupd.health.recording import with_drill
from backupd.health.recovery import with_following
from backupd.health.values import FollowHealth, SegmentsHealth

if TYPE_CHECKING:
    from datetime import datetime

    from prometheus_client.core import Metric

APP_ON_DISK = (("database", "app"), ("store", DISK))
APP_IN_BUCKET = (("database", "app"), ("store", BUCKET))


def scraped(status: Status, now: datetime = NOON) -> dict[str, Metric]:
    """The families by name, as Prometheus reads them."""
    text = metrics_text(status, alarms_of(status, now), now=now).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def samples(status: Status, now: datetime = NOON) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Values by the name of the sample and its labels; no sample is there twice."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in scraped(status, now).values():
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in found.setdefault(sample.name, {})
            found[sample.name][labels] = sample.value
    return found


def followed(status: Status) -> Status:
    """The status with `app` being followed, and a bucket that has lacked its segments for a minute."""
    app = replace(status.databases["app"], journal_mode="wal")
    status = replace(status, databases={**status.databases, "app": app})
    follow = FollowHealth(max_age_seconds=300, lag_seconds=4, window="w", window_since=NOON - HOUR, gaps_total=2)
    lacking = {("app", BUCKET): SegmentsHealth(waiting_since=NOON - MINUTE, waiting_bytes=100)}
    return with_following(status, {"app": follow}, lacking, blind_since=None)


def test_following_has_metrics_only_where_it_is_wanted() -> None:
    """The recovery point of a store that lacks nothing is that of a few seconds ago."""
    found = samples(followed(healthy("app", "other")))
    noon = NOON.timestamp()
    assert found["backupd_recovery_point_timestamp_seconds"] == {APP_ON_DISK: noon - 4, APP_IN_BUCKET: noon - 60}
    assert found["backupd_waiting_segments_bytes"] == {APP_ON_DISK: 0, APP_IN_BUCKET: 100}
    assert found["backupd_recovery_window_open"] == {(("database", "app"),): 1}
    assert found["backupd_recovery_gaps_total"] == {(("database", "app"),): 2}


def test_metrics_are_exactly_those_documented() -> None:
    """The metrics are those that the module documents, each with its help."""
    documented = set(re.findall(r"^    (backupd_\w+) ", metrics.__doc__ or "", flags=re.MULTILINE))
    status = with_drill(healthy(), drilled("intact", id=snapshot_id()), at=NOON)
    status = with_drill(status, drilled("proven", id=snapshot_id()), at=NOON)
    status = with_times(status, "app", next_run_at=NOON, next_drill_at=NOON)
    status = recorded(recorded(status, failed()), failed())
    status = followed(status)
    assert set(samples(status)) == documented
    assert all(family.documentation.endswith(".") for family in scraped(status).values())
    assert "text/plain" in CONTENT_TYPE


def test_values_are_those_of_the_status() -> None:
    """The values are those of the status, each with its database and store."""
    status = with_running(with_times(healthy(), "app", next_run_at=NOON + HOUR), "app", since=NOON)
    status = with_drill(status, drilled("proven", id=snapshot_id()), at=NOON + MINUTE)
    status = recorded(recorded(status, failed()), failed())
    found = samples(status)
    noon = NOON.timestamp()
    assert found["backupd_last_current_timestamp_seconds"] == {APP_ON_DISK: noon, APP_IN_BUCKET: noon}
    assert found["backupd_last_success_timestamp_seconds"] == {APP_ON_DISK: noon, APP_IN_BUCKET: noon}
    assert found["backupd_last_proven_timestamp_seconds"] == {APP_ON_DISK: noon + 60}
    assert found["backupd_due_timestamp_seconds"][APP_ON_DISK] == noon + 1800
    assert found["backupd_run_duration_seconds"] == {APP_ON_DISK: 0.25, APP_IN_BUCKET: 2.0}
    assert found["backupd_pages_changed"] == {APP_ON_DISK: 12}
    assert found["backupd_image_bytes"] == {APP_ON_DISK: 4_096_000}
    assert found["backupd_snapshots_total"] == {APP_ON_DISK: 1, APP_IN_BUCKET: 1}
    assert found["backupd_failures_total"] == {APP_ON_DISK: 0, APP_IN_BUCKET: 2}
    assert found["backupd_stored_bytes_total"] == {APP_ON_DISK: 5000, APP_IN_BUCKET: 5000}
    assert found["backupd_is_current"] == {APP_ON_DISK: 1, APP_IN_BUCKET: 0}
    assert found["backupd_next_run_timestamp_seconds"] == {(("database", "app"),): noon + 3600}
    assert found["backupd_running"] == {(("database", "app"),): 1}
    assert found["backupd_store_errors_total"] == {(("store", DISK),): 0, (("store", BUCKET),): 2}
    assert found["backupd_alarm"] == {(("database", "app"), ("kind", "failing"), ("store", BUCKET)): 1}
    assert found["backupd_healthy"] == {(): 0}
    assert found["backupd_databases"] == {(): 1}
    assert found["backupd_build_info"] == {(("version", __version__),): 1}


def test_healthy_system_has_the_metric_of_health() -> None:
    """A status without databases is not healthy."""
    assert samples(healthy())["backupd_healthy"] == {(): 1}
    assert samples(Status())["backupd_healthy"] == {(): 0}
    assert samples(healthy(), NOON + HOUR)["backupd_healthy"] == {(): 0}


@pytest.mark.parametrize("url", ['/back"ups', "/back\\ups", "/back\nups", "/bäckups/€", "/back{ups}=,"])
def test_odd_names_of_stores_arrive_as_they_are(url: str) -> None:
    """A path may hold anything."""
    assert (("database", "app"), ("store", url)) in samples(healthy(stores=(url,)))["backupd_is_current"]


def test_names_of_stores_that_are_no_text_have_escapes() -> None:
    """Prometheus wants UTF-8, and a directory's name may be any bytes."""
    status = recorded(recorded(healthy(stores=("/\udcff",)), failed(store="/\udcff")), failed(store="/\udcff"))
    found = samples(status)
    assert found["backupd_is_current"] == {(("database", "app"), ("store", "/\\udcff")): 0}
    assert list(found["backupd_alarm"]) == [(("database", "app"), ("kind", "failing"), ("store", "/\\udcff"))]


def test_alarms_with_the_same_labels_are_one_sample() -> None:
    """Prometheus refuses a whole answer for a sample that is there twice."""
    status = healthy()
    for pattern in ("/data/*.db", "/other/*.db") * 4:
        status = with_entry_problem(status, pattern, DOWN, at=NOON)
    assert samples(status)["backupd_alarm"] == {(("database", ""), ("kind", "nothing-matches"), ("store", "")): 2}


def test_what_vanished_has_no_samples_but_its_alarm() -> None:
    """A database that vanished has no sample but its alarm: its age would grow without end."""
    found = samples(with_vanished(healthy("a", "app"), ["app"], at=NOON))
    assert {labels[0][1] for labels in found["backupd_last_current_timestamp_seconds"]} == {"a"}
    assert found["backupd_databases"] == {(): 1}
    assert list(found["backupd_alarm"]) == [(("database", "app"), ("kind", "vanished"), ("store", ""))]


def test_errors_of_a_store_are_those_of_all_databases() -> None:
    """The errors of a store are those of all databases in it."""
    status = healthy("a", "b")
    for name in ("a", "b", "b"):
        status = recorded(status, failed(name))
    assert samples(replace(status, daemon=None))["backupd_store_errors_total"][(("store", BUCKET),)] == 3
