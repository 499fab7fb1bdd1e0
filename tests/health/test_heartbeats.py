from __future__ import annotations

import base64
import socket
import threading
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

import pytest
from harness.command_line import wait_until
from harness.loopback import loopback
from harness.ports import reserved_port
from harness.sink import Received, Sink, sink
from harness.statuses import DOWN

from backupd.config.settings import HeartbeatSettings
from backupd.config.values import Secret
from backupd.errors import SourceUnusableError, StoreUnavailableError
from backupd.health.heartbeats import Heartbeats, send_once, unknown_databases, warn_of_unknown_databases

if TYPE_CHECKING:
    from collections.abc import Iterator

_PATIENCE = 30


@pytest.fixture
def server() -> Iterator[Sink]:
    """A server that heartbeats are sent to."""
    with sink() as found:
        yield found


def heartbeat(url: str, database: str | None = None) -> HeartbeatSettings:
    """The settings of a heartbeat, as configured."""
    return HeartbeatSettings(url=Secret(url), database=database)


def test_a_round_that_succeeds_starts_and_ends_well(server: Sink) -> None:
    """A round that succeeds sends its start and then its end."""
    beats = Heartbeats([heartbeat(f"{server.url}/uuid")])
    beats.started(None)
    beats.finished(None, None)
    assert beats.close(_PATIENCE)
    assert server.received == [Received("/uuid/start", ""), Received("/uuid", "done in full")]


def test_a_round_that_fails_says_what_happened_and_what_to_do(server: Sink) -> None:
    """A round that fails sends the error and the hint."""
    beats = Heartbeats([heartbeat(f"{server.url}/uuid/")])
    beats.finished(None, DOWN)
    assert beats.close(_PATIENCE)
    assert server.received == [Received("/uuid/fail", "s3://bucket/creditrobot does not answer\ncheck the network")]


def test_each_database_has_its_own_and_everything_has_another(server: Sink) -> None:
    """A run of one database is no round."""
    beats = Heartbeats([heartbeat(f"{server.url}/all"), heartbeat(f"{server.url}/app?create=1", "app")])
    beats.started("app")
    beats.finished("app", DOWN)
    beats.finished("app", None)
    beats.finished("other", None)
    assert beats.close(_PATIENCE)
    assert server.paths == ["/app/start?create=1", "/app/fail?create=1", "/app?create=1"]
    assert server.received[-1].body == "done in full"


def test_a_good_round_does_not_hide_what_is_wrong_elsewhere(server: Sink) -> None:
    """A round that succeeds sends a failure for all while another entry's databases are late."""
    wrong: list[str | None] = ["other is not current in /backups", None]
    beats = Heartbeats([heartbeat(f"{server.url}/all"), heartbeat(f"{server.url}/app", "app")], overall=wrong.pop)
    beats.finished(None, None)
    beats.finished(None, None)
    beats.finished("app", None)
    assert beats.close(_PATIENCE)
    assert server.received == [
        Received("/all", "done in full"),
        Received("/all/fail", "other is not current in /backups"),
        Received("/app", "done in full"),
    ]


def test_nothing_waits_for_a_server_that_does_not_answer(server: Sink) -> None:
    """The end of the daemon does not wait for long either."""
    server.gate.clear()
    beats = Heartbeats([heartbeat(f"{server.url}/uuid")])
    beats.started(None)
    server.wait_for(1)
    beats.finished(None, None)
    assert not beats.close(0.01)
    server.gate.set()
    assert beats.close(_PATIENCE)
    assert server.paths == ["/uuid/start", "/uuid"]


def test_what_waits_is_bounded_and_the_oldest_goes_first(server: Sink, capsys) -> None:
    """The newest word is the one that counts."""
    server.gate.clear()
    beats = Heartbeats([heartbeat(f"{server.url}/secret")])
    beats.started(None)
    server.wait_for(1)
    for number in range(203):
        beats.finished(None, StoreUnavailableError(f"round {number}"))
    server.gate.set()
    assert beats.close(_PATIENCE)
    assert [each.body for each in server.received] == ["", *(f"round {number}" for number in range(3, 203))]
    reported = capsys.readouterr().err
    assert reported.count("a heartbeat was dropped") == 3
    assert "secret" not in reported


def test_a_server_that_refuses_is_tried_twice_and_logged_once(server: Sink, capsys) -> None:
    """A server that refuses is tried twice; failure and recovery are logged once, without the URL."""
    server.code = 500
    beats = Heartbeats([heartbeat(f"{server.url}/secret?token=secret")])
    for _ in range(3):
        beats.finished(None, None)
    wait_until(lambda: len(server.received) == 6)
    server.code = 200
    beats.finished(None, None)
    assert beats.close(_PATIENCE)
    reported = capsys.readouterr().err
    assert reported.count("a heartbeat could not be sent: the server answered 500") == 1
    assert reported.count("heartbeats can be sent again") == 1
    assert "http://127.0.0.1" in reported
    assert "secret" not in reported


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:{port}/secret", "https://127.0.0.1:{port}/secret", "http://nosuch.invalid/secret"]
)
def test_a_server_that_is_not_there_fails_nothing(url: str, capsys) -> None:
    """The reason is logged without the URL."""
    beats = Heartbeats([heartbeat(url.format(port=reserved_port()))])
    beats.started(None)
    assert beats.close(_PATIENCE)
    reported = capsys.readouterr().err
    assert reported.count("a heartbeat could not be sent") == 1
    assert "secret" not in reported


@pytest.mark.parametrize("code", [404, 405, 501])
def test_a_service_that_takes_no_post_is_asked_with_get(server: Sink, code: int, capsys) -> None:
    """An unknown heartbeat is logged once, and the service still gets those of successful rounds."""
    server.codes = {"POST": code, "/uuid/start": 404, "/uuid/fail": 404}
    beats = Heartbeats([heartbeat(f"{server.url}/uuid")])
    for _ in range(3):
        beats.started(None)
        beats.finished(None, DOWN)
        beats.started(None)
        beats.finished(None, None)
    assert beats.close(_PATIENCE)
    assert server.paths == ["/uuid/start", "/uuid/fail", "/uuid/start", "/uuid"] * 3
    reported = capsys.readouterr().err
    assert reported.count("does not know this heartbeat") == 2
    assert "could not be sent" not in reported


def test_a_push_monitor_gets_its_heartbeats_in_the_query(server: Sink) -> None:
    """Uptime Kuma gets what is up, or down and why, and nothing of a start."""
    server.codes = {"POST": 404}
    beats = Heartbeats([heartbeat(f"{server.url}/api/push/token?status=up&msg=OK&ping=")])
    beats.started(None)
    beats.finished(None, DOWN)
    beats.finished(None, None)
    assert beats.close(_PATIENCE)
    down, up = (dict(parse_qsl(urlsplit(path).query, keep_blank_values=True)) for path in server.paths)
    assert down == {"status": "down", "msg": "s3://bucket/creditrobot does not answer\ncheck the network", "ping": ""}
    assert up == {"status": "up", "msg": "done in full", "ping": ""}
    assert send_once(heartbeat(f"{server.url}/api/push/token"), "a test") is None


def test_a_name_and_a_password_in_a_url_are_sent_to_its_host_alone() -> None:
    """A name and a password in a URL are sent as HTTP has them, and not to a host that it redirects to."""
    with loopback(lambda handler, _: handler.answer(200)) as other:
        target = f"{other.endpoint_url}/elsewhere"
        with loopback(lambda handler, _: handler.answer(302, Location=target)) as first:
            url = first.endpoint_url.replace("://", "://user:pass%40word1@")
            assert send_once(heartbeat(f"{url}/api/push/token"), "a test") is None
        sent = [request.headers["Authorization"] for request in (*first.requests, *other.requests)]
    assert sent == [f"Basic {base64.b64encode(b'user:pass@word1').decode()}", None]


def test_a_wrong_url_is_logged(server: Sink, capsys) -> None:
    """A URL at which neither method finds anything is logged."""
    server.code = 404
    beats = Heartbeats([heartbeat(f"{server.url}/uuid")])
    beats.finished(None, None)
    assert beats.close(_PATIENCE)
    assert "a heartbeat could not be sent: the server answered 404" in capsys.readouterr().err
    assert send_once(heartbeat(f"{server.url}/uuid"), "a test") == "the server answered 404"


def test_what_is_no_http_fails_nothing(capsys) -> None:
    """A program that speaks no HTTP is logged, without the URL and what it answered."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        beats = Heartbeats([heartbeat(f"http://127.0.0.1:{listening.getsockname()[1]}/secret")])
        beats.started(None)
        for _ in range(2):
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"220 mail.example.org ESMTP secret\r\n")
        assert beats.close(_PATIENCE)
    reported = capsys.readouterr().err
    assert "BadStatusLine" in reported
    assert "secret" not in reported


def test_without_heartbeats_nothing_happens() -> None:
    """Without heartbeats no thread is started, and there is nothing to wait for."""
    beats = Heartbeats([])
    beats.started("app")
    beats.finished("app", None)
    beats.finished(None, DOWN)
    assert "heartbeats" not in {thread.name for thread in threading.enumerate()}
    assert beats.close(0)


def test_names_that_are_not_text_are_sent_with_escapes(server: Sink) -> None:
    """A file's name may be any bytes, and what is sent is UTF-8."""
    beats = Heartbeats([heartbeat(f"{server.url}/uuid")])
    beats.finished(None, SourceUnusableError("no name can be made of /data/\udcff.db"))
    beats.finished(None, None)
    assert beats.close(_PATIENCE)
    assert server.received[0] == Received("/uuid/fail", "no name can be made of /data/\\udcff.db")
    assert server.paths == ["/uuid/fail", "/uuid"]


def test_a_database_that_is_not_there_is_warned_of(capsys) -> None:
    """A typo, and its heartbeat never comes; or a pattern finds the file later."""
    settings = [
        heartbeat("https://hc.example.org/secret"),
        heartbeat("https://hc.example.org/secret", "app"),
        heartbeat("https://hc.example.org/secret", "ap"),
        heartbeat("https://hc.example.org/secret", "ap"),
    ]
    assert unknown_databases(settings, ["app", "other"]) == ["ap"]
    warn_of_unknown_databases(settings, ["app", "other"])
    reported = capsys.readouterr().err
    assert reported.count("no database is called ap") == 1
    assert "secret" not in reported
    warn_of_unknown_databases(settings, ["app", "ap"])
    assert capsys.readouterr().err == ""
