"""What the pages say of the code is what the code says: names, kinds, defaults, and links that lead somewhere."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import sqlite3
import tomllib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from harness.pages import DOCS, PAGES, README, ROOT, anchors, blocks, code_spans, links, rows, section

from backupd.config import Settings, load
from backupd.config.loading import read_variables
from backupd.config.tables import REQUIRED
from backupd.errors import ExitCode
from backupd.health import DatabaseHealth, Status, StoreHealth, alarms, codec
from backupd.health.metrics import metrics_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backupd.config.tables import Key

_OPERATIONS = DOCS / "operations.md"
_CONFIGURATION = DOCS / "configuration.md"
_KUBERNETES = DOCS / "kubernetes.md"
_NOT_OF_BACKUPD = {"BACKUPD_CONFIG", "BACKUPD_IMAGE", "BACKUPD_SOURCE"}
_LOGGING_PACKAGES = ("backup", "daemon", "health", "jobs", "verify", "logs.py", "privileges.py")


def _blocks(language: str) -> list[Any]:
    return [
        pytest.param(block, id=f"{page.name}-{position}")
        for page in PAGES
        for position, block in enumerate(blocks(page, language))
    ]


def _syntax(*packages: str) -> Iterator[ast.AST]:
    for package in packages:
        place = ROOT / "backupd" / package
        for file in [place] if place.is_file() else sorted(place.rglob("*.py")):
            yield from ast.walk(ast.parse(file.read_text()))


@pytest.mark.parametrize("block", _blocks("toml"))
def test_every_configuration_is_valid(tmp_path: Path, block: str) -> None:
    """Copied into a file as it stands, with the secrets that the page leaves to the environment."""
    file = tmp_path / "backupd.toml"
    file.write_text(block)
    without_secret = [
        position
        for position, store in enumerate(tomllib.loads(block).get("stores", []))
        if "access_key_id" in store and "secret_access_key" not in store
    ]
    secrets = {f"BACKUPD_STORES__{position}__SECRET_ACCESS_KEY": "secret" for position in without_secret}
    load(file, {"HOME": str(tmp_path), **secrets})


@pytest.mark.parametrize("block", _blocks("yaml"))
def test_every_yaml_can_be_parsed(block: str) -> None:
    """Every block of YAML on a page, even for Docker, Kubernetes or Prometheus, can be parsed."""
    assert all(isinstance(document, dict) for document in yaml.safe_load_all(block))


@pytest.mark.parametrize("block", _blocks("json"))
def test_every_policy_can_be_parsed(block: str) -> None:
    """Every policy on a page can be parsed, and has a statement."""
    assert json.loads(block)["Statement"]


@pytest.mark.parametrize("block", _blocks("sql"))
def test_every_statement_works(tmp_path: Path, block: str) -> None:
    """Beside a restored file, in a database that has lost a row."""
    with contextlib.chdir(tmp_path):
        for name, rows_of in (("old.db", (1, 2)), ("app.db", (1,))):
            with contextlib.closing(sqlite3.connect(name)) as connection, connection:
                connection.execute("CREATE TABLE users (id INTEGER PRIMARY KEY)")
                connection.executemany("INSERT INTO users VALUES (?)", [(row,) for row in rows_of])
        with contextlib.closing(sqlite3.connect("app.db")) as connection:
            connection.executescript(block)
            assert connection.execute("SELECT id FROM users").fetchall() == [(1,), (2,)]


def test_sidecar_starts_with_its_configuration(tmp_path: Path) -> None:
    """What the pod mounts and sets for backupd is a configuration that names a database, a store and a target."""
    documents = {each["kind"]: each for each in map(yaml.safe_load, blocks(_KUBERNETES, "yaml")) if "kind" in each}
    (sidecar,) = documents["StatefulSet"]["spec"]["template"]["spec"]["initContainers"]
    (tmp_path / "config.toml").write_text(documents["ConfigMap"]["data"]["config.toml"])
    environ = {"HOME": str(tmp_path)}
    for variable in sidecar["env"]:
        name, value = variable["name"], variable["value"]
        if name.endswith("_FILE"):
            secret = tmp_path / value.rpartition("/")[2]
            secret.write_text(documents["Secret"]["stringData"][secret.name])
            value = str(secret)
        if name != "BACKUPD_CONFIG":
            environ[name] = value
    settings = load(tmp_path / "config.toml", environ)
    assert not settings.run_as_owner
    assert (len(settings.databases), len(settings.stores), len(settings.notifications)) == (1, 1, 1)
    mounts = {mount["mountPath"] for mount in sidecar["volumeMounts"]}
    assert {"/app/instance", "/var/lib/backupd", "/tmp", "/etc/backupd", "/run/secrets/backupd"} == mounts
    assert settings.http.address == ("0.0.0.0", sidecar["ports"][0]["containerPort"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every link on a page leads to a file of the project, and to a heading if it names one."""
    for target in links(page):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.is_relative_to(ROOT), target
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_every_page_is_found_from_the_front_page() -> None:
    """A page that nothing links to is not read."""
    assert {f"docs/{page.name}" for page in PAGES if page != README} <= {
        target.partition("#")[0] for target in links(README)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_variables_on_every_page_exist(page: Path) -> None:
    """A variable with a typing error in it would be refused."""
    named = set(re.findall(r"\bBACKUPD_[A-Z][A-Z0-9_]*[A-Z0-9]\b", page.read_text())) - _NOT_OF_BACKUPD
    _, problems = read_variables(dict.fromkeys(sorted(named), "x"))
    assert not [problem.message for problem in problems if "unknown" in problem.message]


def test_alarms_are_those_of_the_code() -> None:
    """The alarms on the page, and the red ones among them, are those of the code."""
    reported = re.findall(r"^### `([a-z-]+)`( \(red\))?$", section(_OPERATIONS, "## Alarms"), flags=re.MULTILINE)
    listed = re.findall(r"^([a-z-]+) {2,}.*?( red)?$", alarms.__doc__ or "", flags=re.MULTILINE)
    assert {kind: bool(is_red) for kind, is_red in reported} == {kind: bool(is_red) for kind, is_red in listed}
    assert {kind for kind, _ in listed} == set(_kinds_in_code())


def _kinds_in_code() -> Iterator[str]:
    for node in _syntax("health"):
        values = [node.value] if isinstance(node, ast.keyword) and node.arg == "kind" else []
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["kind"]:
            values = [node.value]
        for value in values:
            for branch in (value.body, value.orelse) if isinstance(value, ast.IfExp) else (value,):
                if isinstance(branch, ast.Constant):
                    yield branch.value


def test_metrics_are_those_of_the_code() -> None:
    """The page lists all metrics of the code, and no others."""
    listed = {cells[0].strip("`") for cells in rows(section(_OPERATIONS, "## Metrics")) if cells[0] != "metric"}
    text = metrics_text(Status(), (), now=datetime.now(UTC)).decode()
    in_code = set(re.findall(r"^# TYPE (\S+) ", text, flags=re.MULTILINE))
    assert listed == in_code
    assert set(re.findall(r"\bbackupd_[a-z_]+", section(_OPERATIONS, "## Metrics"))) <= in_code


def test_exit_codes_are_those_of_the_code() -> None:
    """Scripts go by them."""
    listed = [cells[0] for cells in rows(section(_OPERATIONS, "## Exit codes")) if cells[0] != "code"]
    assert listed == [str(int(code)) for code in ExitCode]


def test_status_is_that_of_the_code() -> None:
    """The page lists the keys that `status --json` has of a database, and of its stores."""
    reported = (DOCS / "scripts.md").read_text().partition("`databases` of `status`")[2]
    in_braces = [re.findall(r'"([a-z_]+)"', braces) for braces in re.findall(r"`\{(.*?)\}`", reported)]
    database = DatabaseHealth(path="/app.db", stores={"/backups": StoreHealth()})
    in_code = codec.values(Status(databases={"app": database}))["databases"]["app"]
    assert in_braces == [[*in_code], [*in_code["stores"]["/backups"]]]


def test_log_events_are_those_of_the_code() -> None:
    """Each event in the log is on the page, and each event on the page is in the code."""
    cells = [cells[0] for cells in rows(section(_OPERATIONS, "## Log"))]
    listed = {span.removesuffix("...").rstrip(": ") for cell in cells for span in code_spans(cell)}
    assert listed == set(_events_in_code())


def _events_in_code() -> Iterator[str]:
    """What is logged; of a text that is put together, its beginning."""
    for node in _syntax(*_LOGGING_PACKAGES):
        if isinstance(node, ast.Call) and re.fullmatch(
            r"(log|self)\.(info|warning|error)|tell|write", ast.unparse(node.func)
        ):
            event = node.args[0] if node.args else None
            first = event.values[0] if isinstance(event, ast.JoinedStr) else event
            if isinstance(first, ast.Constant):
                yield str(first.value).rstrip(": ")


def test_keys_and_defaults_are_those_of_the_code() -> None:
    """Every key has its line, and the default that it has where that is a value."""
    keys = dict(_keys())
    listed = {key: cells[1] for cells in rows(section(_CONFIGURATION, "## Every key")) for key in code_spans(cells[0])}
    assert set(listed) == set(keys)
    # Where the state is depends on who runs it.
    reported = {key: cell.strip("`") for key, cell in listed.items() if cell.startswith("`") and key != "state_dir"}
    assert {key: _read(keys[key], text) for key, text in reported.items()} == {
        name: key.default
        for name, key in keys.items()
        if name != "state_dir" and key.default is not None and key.default is not REQUIRED and key.table is None
    }


def _keys() -> Iterator[tuple[str, Key]]:
    """Each key by its name on the page; those of databases and stores are without the name of their table."""
    for name, key in Settings.keys.items():
        if key.table is None:
            yield name, key
            continue
        for inner, inner_key in key.table.keys.items():
            yield inner if name in {"databases", "stores"} else f"{name}.{inner}", inner_key


def _read(key: Key, text: str) -> object:
    return key.read([] if text == "[]" else text)
