import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress

import pytest
from harness.command_line import wait_until
from harness.context import PlacedContext
from harness.extent import sampled
from harness.place import create_database
from harness.ports import reserved_port
from harness.statuses import MINUTE, NOON, alarms_of, healthy
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from backupd.daemon.http import HttpServer
from backupd.daemon.listening import Server
from backupd.errors import UsageError
from backupd.health import Status

PATIENCE_SECONDS = 30
TOKEN = "a token of the tests, long enough"


class Alerts:
    """What is wrong, as a test has it."""

    def __init__(self):
        self.found = ()

    def alarms(self):
        return self.found


class Setting:
    """A server at work."""

    def __init__(self, home):
        self.alerts = Alerts()
        self.placed = PlacedContext(home)
        self.server = HttpServer(self.alerts, self.placed.context)
        create_database(home / "app.db", rows=1)
        self.placed.context.status.update(lambda _: healthy())

    def listen(self, port=None, *, host="127.0.0.1", token=None):
        """Answer on a port, or on a free one; which it is."""
        port = port or reserved_port()
        self.port = port
        settings = self.placed.context.settings
        values = {"listen": f"{host}:{port}" if port > 0 else ""} | ({"token": token} if token else {})
        http = type(settings.http).read(values)
        self.server.reconfigure(self.placed.with_settings(http=http))
        return port

    def ask(self, method, path, body=None, *, host="127.0.0.1", port=None, **headers):
        """The code, the type and the text of the answer."""
        with closing(http.client.HTTPConnection(host, port or self.port, timeout=PATIENCE_SECONDS)) as connection:
            connection.request(method, path, body, {name.replace("_", "-"): text for name, text in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.headers.get_content_type(), answer.read().decode()


@pytest.fixture
def setting(tmp_path):
    """A server that answers on a free port, and takes no snapshots."""
    found = Setting(tmp_path)
    found.listen()
    yield found
    found.server.close()
    wait_until(lambda: not any(thread.name.startswith("requested") for thread in threading.enumerate()))
    found.placed.close()


@contextmanager
def connections(port, count, sent=b""):
    """Clients that have connected, and asked for nothing yet."""
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(count)]
        for client in clients:
            with suppress(ConnectionError):  # the server has turned it away
                client.sendall(sent)
        yield clients


def said(port, content):
    """Everything that the server answers to bytes, and whether it closes the connection after that."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)) as connection:
        connection.sendall(content)
        return connection.makefile("rb").read()


def test_health_is_200_while_no_red_alarm_is_on(setting):
    """The answer has nothing about any database; without databases it is 503."""
    assert setting.ask("GET", "/healthz") == (200, "application/json", '{\n  "is_healthy": true,\n  "alarms": []\n}\n')
    setting.placed.context.status.update(lambda _: Status())
    assert setting.ask("GET", "/healthz")[0] == 503


def test_health_names_what_is_wrong(setting):
    """The answer is 503 with the kind, subject and time of each alarm, and never a message or a hint."""
    setting.alerts.found = alarms_of(healthy(), NOON + 31 * MINUTE)
    code, _, text = setting.ask("GET", "/healthz")
    assert code == 503
    assert json.loads(text) == {
        "is_healthy": False,
        "alarms": [
            {"kind": "stale", "database": "app", "store": store, "since": "2026-11-22T12:30:00+00:00"}
            for store in ("/backups", "s3://bucket/creditrobot")
        ],
    }


def test_an_alarm_that_is_not_red_is_listed_and_healthy(setting):
    """Pruning that is held needs a person, and no restart of the container."""
    stale = alarms_of(healthy(), NOON + 31 * MINUTE)[0]
    setting.alerts.found = (replace(stale, kind="held", is_red=False),)
    code, _, text = setting.ask("GET", "/healthz")
    assert (code, json.loads(text)["is_healthy"], len(json.loads(text)["alarms"])) == (200, True, 1)


def test_metrics_are_what_prometheus_reads(setting):
    """The metrics are those of the present status."""
    setting.placed.context.status.update(lambda _: healthy("app", "shop"))
    code, content_type, text = setting.ask("GET", "/metrics")
    assert (code, content_type) == (200, "text/plain")
    databases = {
        sample.labels["database"]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "database" in sample.labels
    }
    assert databases == {"app", "shop"}


@pytest.mark.parametrize("path", ["/database", "/healthz/", "/snapshots", "/status.json", "/../state/status.json"])
def test_other_paths_are_not_found(setting, path):
    """Paths other than those of the API are not found, so that no file and no list can be read."""
    code, _, text = setting.ask("GET", path)
    assert (code, json.loads(text)["error"]["message"]) == (404, "nothing is here")


def test_an_address_may_have_a_query(setting):
    """The query that some health checks add against caches is ignored."""
    assert setting.ask("GET", "/healthz?now=1")[0] == 200


def test_a_head_has_no_body(setting):
    """A HEAD request gets the code of the GET, and no body."""
    assert setting.ask("HEAD", "/healthz")[::2] == (200, "")
    assert setting.ask("HEAD", "/nothing")[::2] == (404, "")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_are_refused(setting, method):
    """Every other method gets 405 with the methods that exist."""
    assert setting.ask(method, "/healthz")[0] == 405


def test_a_snapshot_needs_a_token_in_the_configuration(setting):
    """Without a configured token, the path of snapshots is not found."""
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
    """A snapshot that is requested with the token is in every store when the answer comes."""
    setting.listen(setting.port, token=TOKEN)
    code, _, text = setting.ask(
        "POST", "/snapshots", "database=app&tag=before-upgrade", Authorization=f"Bearer {TOKEN}"
    )
    taken = json.loads(text)["snapshots"]
    assert (code, [each["outcome"] for each in taken]) == (200, ["created", "created"])
    assert all(
        (setting.placed.home / store / "app/snapshots" / f"{taken[0]['id']}.json").exists()
        for store in ("disk", "bucket")
    )


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"GET /healthz\r\n\r\n", 200),
        (b"GET http://backupd:9620/healthz HTTP/1.1\r\n\r\n", 200),
        (b"POST /snapshots HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n", 413),
        (b"POST /snapshots HTTP/1.1\r\nContent-Length: many\r\n\r\n", 400),
        (b"POST /snapshots HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /snapshots HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 400),
        (b"POST /snapshots HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST /snapshots HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nmany\r\n", 400),
        (b"POST /snapshots HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"x" * 100_000, 431),
        (b"GET http://[ HTTP/1.1\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nno header\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
        (b"GET /%00%ff HTTP/1.1\r\n\r\n", 404),
    ],
)
def test_what_is_no_request_is_refused(setting, capsys, request_, code):
    """A malformed request is refused in JSON and not logged, and the next client is answered."""
    capsys.readouterr()
    with suppress(ConnectionError) if len(request_) > 10_000 else nullcontext():  # more than the server takes
        first, _, rest = said(setting.port, request_).partition(b"\r\n")
        assert int(first.split()[1]) == code
        assert code == 200 or json.loads(rest.partition(b"\r\n\r\n")[2])["error"]["message"]
    assert setting.ask("GET", "/healthz")[0] == 200
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("path", "body", "content_type", "reported"),
    [
        ("/snapshots", "tag=a&tag=b", "application/x-www-form-urlencoded", "'tag' is given more than once"),
        ("/snapshots?tag=a", "tag=b", "application/x-www-form-urlencoded", "'tag' is given more than once"),
        ("/snapshots", '{"tag": "a", "tag": "b"}', "application/json", "'tag' is given more than once"),
        ("/snapshots?database=%ff", "", "application/x-www-form-urlencoded", "cannot be read"),
        ("/snapshots", "database=a%00", "application/x-www-form-urlencoded", "no database 'a\\x00'"),
        ("/snapshots", '{"wait": ' + "9" * 5000 + "}", "application/json", "wait must be true or false"),
        ("/snapshots", '{"wait": 1e999}', "application/json", "wait must be true or false"),
        ("/snapshots", '{"wait": NaN}', "application/json", "wait must be true or false"),
        ("/snapshots", '{"database": -' + "9" * 5000 + "}", "application/json", "database must be"),
        ("/snapshots", '{"database": "\\ud800"}', "application/json", "no database '\\ud800'"),
        ("/snapshots", '{"database": ' + "[" * 7000 + "]" * 7000 + "}", "application/json", "cannot be read"),
    ],
)
def test_a_value_that_cannot_be_is_named(setting, path, body, content_type, reported):
    """400, whichever way it is sent."""
    setting.listen(setting.port, token=TOKEN)
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": content_type}
    code, _, text = setting.ask("POST", path, body, **headers)
    assert code == 400
    assert reported in json.loads(text)["error"]["message"]


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: "])
@pytest.mark.parametrize("count", sampled([40, 400]))
def test_clients_that_ask_nothing_keep_no_other_out(setting, count, sent):
    """Others are answered at once, however many have connected and ask nothing, or not to the end."""
    with connections(setting.port, count, sent):
        for path in ("/healthz", "/metrics", "/healthz"):
            began = time.monotonic()
            assert setting.ask("GET", path)[0] == 200
            assert time.monotonic() - began < 5


def test_a_request_has_to_be_complete_in_time():
    """A byte now and then does not keep a connection open, and nor does silence; others are answered meanwhile."""

    def application(environ, start_response):
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    server = Server(("127.0.0.1", 0), application, threads=1, request_seconds=0.5)
    try:
        with connections(int(server.effective_port), 2, b"GET / HTTP/1.1\r\nX: ") as (dripping, silent):
            wait_until(lambda: not _takes_a_byte(dripping))
            with suppress(ConnectionError):
                assert silent.recv(1) == b""
        assert said(int(server.effective_port), b"GET / HTTP/1.0\r\n\r\n").endswith(b"ok")
    finally:
        server.close()


def _takes_a_byte(connection):
    try:
        connection.sendall(b"x")
    except ConnectionError:
        return False
    return True


def test_requests_that_wait_leave_room_for_others(setting):
    """Four wait for a database whose run does not end, one more is refused; health and other databases are there."""
    create_database(setting.placed.home / "shop.db", rows=1)
    setting.listen(setting.port, token=TOKEN)

    def ask(number=0, *, database="app", **fields):
        body = "&".join(f"{key}={text}" for key, text in {"database": database, "tag": f"n{number}", **fields}.items())
        return setting.ask("POST", "/snapshots", body, Authorization=f"Bearer {TOKEN}")[::2]

    with ThreadPoolExecutor(40) as threads:
        with setting.placed.context.runs.turn("app", timeout=None):
            waiting = [threads.submit(ask, number) for number in range(40)]
            wait_until(lambda: sum(each.done() for each in waiting) == 36)
            refused = [each.result() for each in waiting if each.done()]
            assert {code for code, _ in refused} == {503}
            assert json.loads(refused[0][1])["error"]["message"].startswith("as many requests for app are running")
            assert ask(wait="false")[0] == 503
            assert [setting.ask("GET", path)[0] for path in ("/healthz", "/metrics")] == [200, 200]
            assert ask(database="shop")[0] == 200
        assert sorted(each.result()[0] for each in waiting) == [200] * 4 + [503] * 36
    assert ask()[0] == 200


def test_a_refusal_says_when_to_ask_again(setting):
    """A refusal for lack of room has a Retry-After header."""
    setting.listen(setting.port, token=TOKEN)
    authorized = b"POST /snapshots?database=app&wait=false HTTP/1.0\r\nAuthorization: Bearer " + TOKEN.encode()
    with setting.placed.context.runs.turn("app", timeout=None):
        answers = [said(setting.port, authorized + b"\r\n\r\n") for _ in range(5)]
    assert [answer.split()[1] for answer in answers] == [b"202"] * 4 + [b"503"]
    assert b"\r\nRetry-After: 5\r\n" in answers[-1]


def test_who_waits_is_answered_after_the_server_has_closed(setting):
    """A daemon that stops lets what is going on finish."""
    setting.listen(setting.port, token=TOKEN)
    with ThreadPoolExecutor(1) as threads:
        with setting.placed.context.runs.turn("app", timeout=None):
            headers = {"Authorization": f"Bearer {TOKEN}"}
            waiting = threads.submit(setting.ask, "POST", "/snapshots", "database=app", **headers)
            wait_until(lambda: setting.server._requests._running)
            setting.server.close()
            with pytest.raises(ConnectionRefusedError):
                setting.ask("GET", "/healthz")
        assert waiting.result()[0] == 200


def test_a_reload_moves_to_another_address(setting):
    """The old address stops answering."""
    before = setting.port
    setting.listen()
    assert setting.ask("GET", "/healthz")[0] == 200
    with pytest.raises(ConnectionRefusedError):
        setting.ask("GET", "/healthz", port=before)


def test_a_reload_to_the_same_address_goes_on_listening(setting):
    """After a reload to the same address, an open connection is answered by the new configuration."""
    with closing(http.client.HTTPConnection("127.0.0.1", setting.port, timeout=PATIENCE_SECONDS)) as connection:
        connection.connect()
        setting.listen(setting.port, token=TOKEN)
        connection.request("POST", "/snapshots")
        assert connection.getresponse().status == 401


def test_an_address_that_is_taken_is_refused_and_the_one_before_stays(setting):
    """An address that is taken is refused with a hint, and the server still answers at the one before."""
    before = setting.port
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use") as refused:
            setting.listen(port)
    assert "BACKUPD_HTTP__LISTEN" in refused.value.hint
    assert setting.ask("GET", "/healthz", port=before)[0] == 200


def test_an_address_of_another_machine_is_refused(setting):
    """An address that is in no network of this machine is refused."""
    with pytest.raises(UsageError, match=r"cannot listen on 192\.0\.2\.1:"):
        setting.listen(host="192.0.2.1")


def test_no_address_is_no_server(setting):
    """Without an address no server listens until a reload sets one, and closing a closed server does no harm."""
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


def test_a_client_that_goes_away_is_not_logged(setting, capsys):
    """The next client is answered."""
    for _ in range(3):
        with closing(socket.create_connection(("127.0.0.1", setting.port))) as connection:
            connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
    assert setting.ask("GET", "/healthz")[0] == 200
    assert capsys.readouterr().err == ""


def test_connection_whose_request_has_come_is_not_closed_for_room(monkeypatch):
    """A connection whose request has arrived is answered, even if others need its place."""
    goes_on = threading.Event()

    def application(environ, start_response):
        if environ["PATH_INFO"] == "/slow":
            assert goes_on.wait(PATIENCE_SECONDS)
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    monkeypatch.setattr("backupd.daemon.listening._most_connections", lambda: 2)
    server = Server(("127.0.0.1", 0), application, threads=2)
    address = ("127.0.0.1", server.effective_port)
    with ExitStack() as stack:
        stack.callback(server.close)
        stack.callback(goes_on.set)
        slow = stack.enter_context(socket.create_connection(address))
        slow.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: any(channel.requests for channel in server.active_channels.values()))
        is_held = threading.Event()
        server.pull_trigger(lambda: is_held.wait(PATIENCE_SECONDS))
        quick = stack.enter_context(socket.create_connection(address))
        quick.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(5):
            stack.enter_context(socket.create_connection(address))
        is_held.set()
        quick.settimeout(PATIENCE_SECONDS)
        assert quick.recv(100).startswith(b"HTTP/1.1 200 OK")
