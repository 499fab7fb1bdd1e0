from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from harness.sink import Sink, sink
from harness.statuses import BUCKET, HOUR, MINUTE, NOON, alarms_of, created, failed, healthy, recorded
from msgspec.structs import replace

from backupd.config.settings import NotificationSettings
from backupd.config.values import Secret
from backupd.errors import StoreUnavailableError
from backupd.health import Status, StatusFile
from backupd.health.notifications import AppriseTarget, Notifications
from backupd.health.planning import with_entry_problem
from backupd.state import StateDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# apprise imports it with all of its plugins, on Pythons that still have it.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")


@dataclass
class Notebook:
    """A target that writes down what it is reported, or refuses to."""

    key: str = "notebook"
    name: str = "a notebook"
    is_open: bool = True
    titles: list[str] = field(default_factory=list)
    tries: int = 0

    def send(self, title: str, body: str, *, is_good: bool) -> bool:
        self.tries += 1
        if self.is_open:
            self.titles.append(title)
        assert body
        assert is_good is ("over" in title)
        return self.is_open


@pytest.fixture
def file(tmp_path: Path) -> StatusFile:
    """A status in which nothing is wrong, and nothing will be late."""
    file = StatusFile(StateDirectory(tmp_path / "state"))
    file.update(lambda _: healthy())
    return file


@pytest.fixture
def server() -> Iterator[Sink]:
    """A server that notifications are sent to."""
    with sink() as found:
        yield found


def look(notifications: Notifications, file: StatusFile, minutes: float = 0) -> None:
    """Tell what is wrong so many minutes after noon."""
    now = NOON + minutes * MINUTE
    notifications.send_now(alarms_of(file.read(), now), now=now)


def fail_twice(file: StatusFile) -> None:
    """The bucket is down."""
    file.update(lambda status: recorded(recorded(status, failed()), failed()))


def mend(file: StatusFile) -> None:
    """The bucket works again."""
    file.update(lambda status: recorded(status, created(store=BUCKET), due_by=NOON + 10**4 * HOUR))


def notebook_of(file: StatusFile, *notebooks: Notebook) -> Notifications:
    """Notifications that go there."""
    file.update(healthy_for_years)
    return Notifications(StatusFile(file._state), notebooks, remind_after=HOUR)


def healthy_for_years(status: Status) -> Status:
    """The status with stores that are not due for years."""
    app = status.databases["app"]
    stores = {url: replace(health, due_by=NOON + 10**4 * HOUR) for url, health in app.stores.items()}
    return replace(status, databases={"app": replace(app, stores=stores)})


def test_each_notification_arrives_exactly_once_over_http(file: StatusFile, server: Sink) -> None:
    """Through apprise: the failure, and the recovery, however often it is looked at."""
    settings = NotificationSettings(url=Secret(f"json://user:secret@127.0.0.1:{server.port}/hook"))
    notifications = Notifications(file, [AppriseTarget(settings)], remind_after=HOUR)
    for minutes in range(3):
        look(notifications, file, minutes)
    assert server.received == []
    fail_twice(file)
    for minutes in range(3, 6):
        look(notifications, file, minutes)
    mend(file)
    for minutes in range(6, 9):
        look(notifications, file, minutes)
    failure, recovery = [json.loads(each.body) for each in server.received]
    assert server.paths == ["/hook", "/hook"]
    assert (failure["title"], failure["type"]) == (f"backupd PROBLEM: failing: app in {BUCKET}", "warning")
    assert "does not answer (2 attempts)" in failure["message"]
    assert "What to do: check the network" in failure["message"]
    assert (recovery["title"], recovery["type"]) == (f"backupd: over: app in {BUCKET}", "success")


def test_names_that_are_not_text_are_sent_with_escapes(file: StatusFile, server: Sink) -> None:
    """A file's name may be any bytes, and what is sent is UTF-8."""
    target = AppriseTarget(NotificationSettings(url=Secret(f"json://127.0.0.1:{server.port}/hook")))
    notifications = Notifications(file, [target], remind_after=HOUR)
    error = StoreUnavailableError("/data/\udcff.db went wrong", hint="look at /data/\udcff.db")
    for minutes in range(4):
        file.update(lambda status: with_entry_problem(status, "/data/\udcff*", error, at=NOON))
        look(notifications, file, minutes)
    (reported,) = [json.loads(each.body) for each in server.received]
    assert "\\udcff*" in reported["title"]
    assert "/data/\\udcff.db went wrong" in reported["message"]


def test_a_restart_repeats_nothing(file: StatusFile) -> None:
    """What was sent is in the status file."""
    notebook = Notebook()
    look(notebook_of(file, notebook), file)
    fail_twice(file)
    look(notebook_of(file, notebook), file, 1)
    look(notebook_of(file, notebook), file, 2)
    assert len(notebook.titles) == 1
    mend(file)
    look(notebook_of(file, notebook), file, 3)
    look(notebook_of(file, notebook), file, 4)
    assert [title.partition(":")[0] for title in notebook.titles] == ["backupd PROBLEM", "backupd"]
    assert file.read().alarms == {}


def test_what_did_not_arrive_is_sent_again_after_growing_pauses(file: StatusFile, capsys) -> None:
    """What did not arrive is sent again after growing pauses, and not to a target that has it."""
    shut, other = Notebook("shut", "json://shut", is_open=False), Notebook("other", "json://other")
    notifications = notebook_of(file, shut, other)
    fail_twice(file)
    tried_at = []
    for seconds in range(0, 40 * 60, 30):
        before = shut.tries
        look(notifications, file, seconds / 60)
        tried_at += [seconds / 60] * (shut.tries - before)
    assert tried_at == [0, 1, 3, 7, 15, 31]
    warnings = capsys.readouterr().err
    assert warnings.count("a notification could not be sent") == 6
    assert "json://shut" in warnings
    shut.is_open = True
    look(notifications, file, 70)
    assert len(shut.titles) == 1
    assert "still" not in shut.titles[0]
    assert [("still" in title) for title in other.titles] == [False, True]


def test_on_a_full_disk_nothing_is_sent_twice(file: StatusFile, capsys) -> None:
    """What cannot be written is remembered, and written when there is room."""
    notebook = Notebook()
    notifications = notebook_of(file, notebook)
    fail_twice(file)
    state = file._state.root
    moved = state.with_name("moved")
    state.rename(moved)
    state.write_text("in the way, as a disk that was taken away")
    now = NOON + MINUTE
    alarms = alarms_of(StatusFile(StateDirectory(moved)).read(), now)
    for _ in range(3):
        notifications.send_now(alarms, now=now)
    assert len(notebook.titles) == 1
    assert capsys.readouterr().err.count("sent notifications cannot be recorded") == 1
    state.unlink()
    moved.rename(state)
    look(notifications, file, 2)
    assert set(file.read().alarms[f"not-current app {BUCKET}"].deliveries) == {"notebook"}
    look(notebook_of(file, notebook), file, 3)
    assert len(notebook.titles) == 1


@pytest.mark.parametrize("loss", ["removed", "damaged", "begun again"])
def test_a_lost_file_ends_no_alarm(file: StatusFile, loss: str) -> None:
    """A lost status file sends neither an end nor the alarm again; the real end is sent."""
    notebook = Notebook()
    notifications = notebook_of(file, notebook)
    fail_twice(file)
    look(notifications, file)
    path = file._state.root / "status.json"
    if loss == "damaged":
        path.write_bytes(b"\0" * 512)
    else:
        path.unlink()
    if loss == "begun again":
        StatusFile(file._state).update(lambda status: recorded(status, created(), due_by=None))
    look(notifications, file, 1)
    file.touch()
    look(notifications, file, 2)
    assert len(notebook.titles) == 1
    assert alarms_of(StatusFile(file._state).read(), NOON) != ()
    mend(file)
    look(notifications, file, 3)
    assert notebook.titles[1:] == [f"backupd: over: app in {BUCKET}"]


def test_new_targets_after_a_reload_get_the_alarms_that_are_on(file: StatusFile) -> None:
    """Targets that stay get nothing twice."""
    old, new = Notebook("old"), Notebook("new")
    notifications = notebook_of(file, old)
    fail_twice(file)
    look(notifications, file)
    notifications.reconfigure([old, new], remind_after=HOUR)
    look(notifications, file, 1)
    notifications.reconfigure([new], remind_after=HOUR)
    look(notifications, file, 2)
    assert (len(old.titles), len(new.titles)) == (1, 1)
    assert set(file.read().alarms[f"not-current app {BUCKET}"].deliveries) == {"new"}


def test_sending_never_waits_for_a_target(file: StatusFile, server: Sink) -> None:
    """A run continues while a server does not answer, and a quick end is not waited for."""
    server.gate.clear()
    settings = NotificationSettings(url=Secret(f"json://127.0.0.1:{server.port}/hook"))
    notifications = Notifications(file, [AppriseTarget(settings)], remind_after=HOUR)
    fail_twice(file)
    alarms = alarms_of(file.read(), NOON)
    notifications.send(alarms, now=NOON)
    server.wait_for(1)
    notifications.send(alarms, now=NOON)
    assert not notifications.close(timeout=0.01)
    server.gate.set()
    assert notifications.close(timeout=30)
    assert len(server.received) == 1
    assert file.read().alarms[f"not-current app {BUCKET}"].times_notified == 1


def test_waiting_notifications_are_sent_before_the_end(file: StatusFile) -> None:
    """SIGTERM may come right after a failure."""
    notebook = Notebook()
    notifications = notebook_of(file, notebook)
    fail_twice(file)
    notifications.send(alarms_of(file.read(), NOON), now=NOON)
    assert notifications.close(timeout=30)
    assert len(notebook.titles) == 1
    assert Notifications(file, [], remind_after=HOUR).close(timeout=0)


def test_a_bug_in_sending_does_not_end_it(file: StatusFile, capsys) -> None:
    """Silence for years would be worse."""
    reported = threading.Event()

    class Odd(Notebook):
        def send(self, title: str, body: str, *, is_good: bool) -> bool:
            super().send(title, body, is_good=is_good)
            if self.tries == 1:
                raise KeyError("odd")
            reported.set()
            return True

    notifications = notebook_of(file, Odd())
    fail_twice(file)
    alarms = alarms_of(file.read(), NOON)
    notifications.send(alarms, now=NOON)
    while not reported.wait(0.01):
        notifications.send(alarms, now=NOON)
    assert notifications.close(timeout=30)
    assert "KeyError('odd')" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("tgram://123456:secret-token/chat", "tgram://..."),
        ("slack://secretA/secretB/secretC", "slack://..."),
        ("mailto://user:secret@example.org", "mailto://example.org"),
        ("jsons://user:secret@hooks.example.org/secret-path", "jsons://hooks.example.org"),
        ("secret-nonsense://secret", "secret-nonsense://..."),
    ],
)
def test_no_part_of_a_url_that_may_be_secret_is_shown(url: str, name: str) -> None:
    """The host of a URL is shown only where it cannot be a token, and the rest never."""
    target = AppriseTarget(NotificationSettings(url=Secret(url)))
    assert target.name == name
    assert "secret" not in target.name.removeprefix("secret-nonsense")
    assert "secret" not in target.key
    assert "secret" not in repr(target).replace("secret-nonsense", "")


def test_a_target_that_refuses_is_logged_without_its_url(file: StatusFile, server: Sink, capsys) -> None:
    """Neither backupd nor apprise logs the URL of a target that refuses."""
    server.code = 403
    settings = [
        NotificationSettings(url=Secret(f"json://user:secret@127.0.0.1:{server.port}/secret")),
        NotificationSettings(url=Secret("nosuch://secret")),
        NotificationSettings(url=Secret("json://user:secret@127.0.0.1:1/secret")),
    ]
    notifications = Notifications(file, [AppriseTarget(each) for each in settings], remind_after=HOUR)
    fail_twice(file)
    look(notifications, file)
    output = capsys.readouterr()
    assert output.err.count("could not be sent") == 3
    assert "json://127.0.0.1" in output.err
    assert "secret" not in output.err + output.out
    assert file.read().alarms[f"not-current app {BUCKET}"].deliveries == {}


def test_alarms_are_in_the_log_when_they_begin_and_end(file: StatusFile, capsys) -> None:
    """Alarms are logged when they begin and when they end, even without notifications."""
    notifications = notebook_of(file)
    fail_twice(file)
    look(notifications, file)
    look(notifications, file, 1)
    mend(file)
    look(notifications, file, 2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "kind=failing" in lines[0]
    assert "database=app" in lines[0]
    assert "check the network" in lines[0]
    assert "alarm over" in lines[1]
    assert file.read().alarms == {}
