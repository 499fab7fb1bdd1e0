import http.client
import json
import socket
import threading
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace

import pytest
from harness.charge import Charged
from harness.command_line import wait_until
from harness.place import create_database
from harness.site import free_port
from harness.statuses import MINUTE, NOON, healthy
from prometheus_client.parser import text_string_to_metric_families

from backupd.daemon.http import HttpServer
from backupd.errors import UsageError
from backupd.health import Status
from backupd.health.judging import judge

PATIENCE_SECONDS = 30
TOKEN = "a token of the tests, long enough"
MOST_CONNECTIONS = 32


class Attention:
    """What is wrong, as a test has it."""

    def __init__(self):
        self.found = ()

    def alarms(self):
        return self.found


class Setting:
    """A server at work."""

    def __init__(self, home):
        self.attention = Attention()
        self.server = HttpServer(self.attention)
        self.charged = Charged(home)
        create_database(home / "app.db", rows=1)
        self.charged.charge.status.update(lambda _: healthy())

    def listen(self, port=None, *, host="127.0.0.1", token=None):
        """Answer on a port, or on a free one; which it is."""
        port = port or free_port()
        self.port = port
        settings = self.charged.charge.settings
        values = {"listen": f"{host}:{port}" if port > 0 else ""} | ({"token": token} if token else {})
        http = type(settings.http).model_validate(values)
        self.server.listen(replace(self.charged.charge, settings=settings.model_copy(update={"http": http})))
        return port

    def ask(self, method, path, body=None, *, host="127.0.0.1", port=None, **headers):
        """The code, the type and the text of the answer."""
        with closing(http.client.HTTPConnection(host, port or self.port, timeout=PATIENCE_SECONDS)) as connection:
            connection.request(method, path, body, {name.replace("_", "-"): text for name, text in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.headers.get_content_type(), answer.read().decode()


@pytest.fixture
def setting(tmp_path):
    """One that answers on a free port, and takes no snapshots."""
    found = Setting(tmp_path)
    found.listen()
    yield found
    found.server.close()
    found.charged.close()


@contextmanager
def connections(port, count):
    """Clients that have connected and ask nothing."""
    with ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(count)]


def test_health_is_well_while_nothing_red_is_on(setting):
    """200, and nothing about any database; when there is none, nobody can be well."""
    assert setting.ask("GET", "/healthz") == (200, "application/json", '{\n  "is_healthy": true,\n  "alarms": []\n}\n')
    setting.charged.charge.status.update(lambda _: Status())
    assert setting.ask("GET", "/healthz")[0] == 503


def test_health_names_what_is_wrong(setting):
    """503, with the kind of each alarm, and of what, and since when; never what a message or a hint says."""
    setting.attention.found = judge(healthy(), now=NOON + 31 * MINUTE, alive_at=NOON + 31 * MINUTE)
    code, _, text = setting.ask("GET", "/healthz")
    assert code == 503
    assert json.loads(text) == {
        "is_healthy": False,
        "alarms": [
            {"kind": "stale", "database": "app", "store": store, "since": "2026-11-22T12:30:00+00:00"}
            for store in ("/backups", "s3://bucket/creditrobot")
        ],
    }


def test_what_is_not_red_is_told_and_healthy(setting):
    """Pruning that is held needs somebody, and no restart of the container."""
    stale = judge(healthy(), now=NOON + 31 * MINUTE, alive_at=NOON + 31 * MINUTE)[0]
    setting.attention.found = (replace(stale, kind="held", is_red=False),)
    code, _, text = setting.ask("GET", "/healthz")
    assert (code, json.loads(text)["is_healthy"], len(json.loads(text)["alarms"])) == (200, True, 1)


def test_metrics_are_what_prometheus_reads(setting):
    """Of the status as it is now."""
    setting.charged.charge.status.update(lambda _: healthy("app", "shop"))
    code, content_type, text = setting.ask("GET", "/metrics")
    assert (code, content_type) == (200, "text/plain")
    databases = {
        sample.labels["database"]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "database" in sample.labels
    }
    assert databases == {"app", "shop"}


@pytest.mark.parametrize("path", ["/", "/healthz/", "/snapshots", "/status.json", "/../state/status.json"])
def test_nothing_else_is_there(setting, path):
    """No file, no list of anything."""
    code, _, text = setting.ask("GET", path)
    assert (code, json.loads(text)["error"]["message"]) == (404, "nothing is here")


def test_an_address_may_have_a_question(setting):
    """Some health checks add one against caches."""
    assert setting.ask("GET", "/healthz?now=1")[0] == 200


def test_a_head_has_no_body(setting):
    """And the code that GET has."""
    assert setting.ask("HEAD", "/healthz")[::2] == (200, "")
    assert setting.ask("HEAD", "/nothing")[::2] == (404, "")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_are_not_there(setting, method):
    """However they are asked for."""
    assert setting.ask(method, "/healthz")[0] == 501


def test_a_snapshot_needs_a_token_in_the_configuration(setting):
    """Without one there is nothing, whoever asks."""
    assert setting.ask("POST", "/snapshots", Authorization="Bearer ")[0] == 404
    assert setting.ask("POST", "/snapshots", Authorization="Bearer None")[0] == 404


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        f"Basic {TOKEN}",
        TOKEN,
        "Bearer ümlaut",
    ],
)
def test_a_snapshot_needs_exactly_the_token(setting, given):
    """401, which says how to send it, and never what it is."""
    setting.listen(setting.port, token=TOKEN)
    headers = {} if given is None else {"Authorization": given.encode()}
    code, _, text = setting.ask("POST", "/snapshots", **headers)
    assert code == 401
    assert "Authorization: Bearer TOKEN" in text
    assert TOKEN not in text


def test_a_snapshot_is_taken_with_the_token(setting):
    """It is in every store when the answer comes."""
    setting.listen(setting.port, token=TOKEN)
    code, _, text = setting.ask(
        "POST", "/snapshots", "database=app&tag=before-upgrade", Authorization=f"Bearer {TOKEN}"
    )
    taken = json.loads(text)["snapshots"]
    assert (code, [each["outcome"] for each in taken]) == (200, ["created", "created"])
    assert all(
        (setting.charged.home / store / "app/snapshots" / f"{taken[0]['id']}.json").exists()
        for store in ("disk", "bucket")
    )


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({"Content_Length": "1000000"}, "too large"),
        ({"Content_Length": "many"}, "of no known length"),
        ({"Content_Length": "-1"}, "of no known length"),
    ],
    ids=["too large", "no number", "negative"],
)
def test_a_body_that_cannot_be_is_refused_before_it_is_read(setting, headers, told):
    """With what is wrong with it."""
    setting.listen(setting.port, token=TOKEN)
    with closing(socket.create_connection(("127.0.0.1", setting.port), timeout=PATIENCE_SECONDS)) as connection:
        lines = ["POST /snapshots HTTP/1.0", f"Authorization: Bearer {TOKEN}"]
        lines += [f"{name.replace('_', '-')}: {text}" for name, text in headers.items()]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = connection.makefile().read()
    assert answer.startswith("HTTP/1.0 400 ")
    assert told in answer


def test_those_who_ask_nothing_do_not_keep_others_out_for_ever(setting):
    """There is room for some; one more is turned away at once, and let in when one has gone."""
    with connections(setting.port, MOST_CONNECTIONS) as idle:
        wait_until(lambda: _is_turned_away(setting))
        for connection in idle:
            connection.close()
        wait_until(lambda: not _is_turned_away(setting))
    assert setting.ask("GET", "/healthz")[0] == 200


def _is_turned_away(setting):
    try:
        return setting.ask("GET", "/healthz")[0] != 200
    except (ConnectionError, http.client.HTTPException):
        return True


def test_a_reload_moves_to_another_address(setting):
    """Where it listened before, nobody answers any more."""
    before = setting.port
    setting.listen()
    assert setting.ask("GET", "/healthz")[0] == 200
    with pytest.raises(ConnectionRefusedError):
        setting.ask("GET", "/healthz", port=before)


def test_a_reload_to_the_same_address_goes_on_listening(setting):
    """With what the new configuration says: a connection that is open is answered by it."""
    with closing(http.client.HTTPConnection("127.0.0.1", setting.port, timeout=PATIENCE_SECONDS)) as connection:
        connection.connect()
        wait_until(lambda: threading.active_count() > 1)
        setting.listen(setting.port, token=TOKEN)
        connection.request("POST", "/snapshots")
        assert connection.getresponse().status == 401


def test_an_address_that_is_taken_is_refused_and_the_one_before_stays(setting):
    """With what to set instead."""
    before = setting.port
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use") as refused:
            setting.listen(port)
    assert "BACKUPD_HTTP__LISTEN" in refused.value.hint
    assert setting.ask("GET", "/healthz", port=before)[0] == 200


def test_an_address_of_another_machine_is_refused(setting):
    """It is in no network of this one."""
    with pytest.raises(UsageError, match=r"cannot listen on 192\.0\.2\.1:"):
        setting.listen(host="192.0.2.1")


def test_no_address_is_no_server(setting):
    """Until there is one again; closing what is closed does no harm."""
    before = setting.port
    setting.listen(-1)
    with pytest.raises(ConnectionRefusedError):
        setting.ask("GET", "/healthz", port=before)
    setting.server.close()
    setting.listen(before)
    assert setting.ask("GET", "/healthz")[0] == 200


def test_it_listens_on_a_newer_protocol_too(setting):
    """IPv6, in brackets."""
    if not socket.has_ipv6 or not _has_loopback_6():
        pytest.skip("this machine has no IPv6")
    setting.listen(host="[::1]")
    assert setting.ask("GET", "/healthz", host="::1")[0] == 200


def _has_loopback_6():
    with closing(socket.socket(socket.AF_INET6)) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
        return True


def test_a_client_that_goes_away_is_no_news(setting, capsys):
    """Nothing is logged, and the next one is answered."""
    for _ in range(3):
        with closing(socket.create_connection(("127.0.0.1", setting.port))) as connection:
            connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
    assert setting.ask("GET", "/healthz")[0] == 200
    assert capsys.readouterr().err == ""
