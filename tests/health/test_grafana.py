"""The dashboard and the alert rules in `grafana/` use what `GET /metrics` answers, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from itertools import combinations
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from harness.pages import DOCS, ROOT
from harness.statuses import (
    BUCKET,
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
    with_health,
    with_times,
)
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from backupd.health import alarms
from backupd.health.metrics import metrics_text
from backupd.health.planning import with_entry_problem
from backupd.health.recording import with_drill
from backupd.health.recovery import with_following
from backupd.health.values import FollowHealth, SegmentsHealth

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_GRAFANA = ROOT / "grafana"
_RULES = _GRAFANA / "alerts.yml"
_OF_PROMETHEUS = {"job", "instance"}
_BOTH = {"database", "store"}
_KEYWORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "bool", "offset"}
_GROUPED = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_MATCHER = re.compile(r'([a-zA-Z_]\w*)\s*(?:=~|!~|!=|=)\s*(?:"(?:[^"\\]|\\.)*"|%q)')
_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\s*\{([^{}]*)\}")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool, of the Debian package prometheus"
)


@pytest.fixture(scope="module")
def exposed() -> dict[str, set[str]]:
    """The labels of each metric that a daemon exposes which follows its database, and has all kinds of trouble."""
    status = with_drill(healthy(), drilled("intact", id=snapshot_id()), at=NOON)
    status = with_drill(status, drilled("proven", id=snapshot_id()), at=NOON)
    status = with_times(status, "app", next_run_at=NOON, next_drill_at=NOON)
    status = with_health(recorded(recorded(status, failed()), failed()), continuity_at=NOON)
    status = with_entry_problem(status, "/data/*.db", DOWN, at=NOON)
    app = replace(status.databases["app"], journal_mode="wal")
    follow = FollowHealth(max_age_seconds=300, lag_seconds=4, window="w", window_since=NOON - HOUR, gaps_total=2)
    lacking = {("app", BUCKET): SegmentsHealth(waiting_since=NOON - MINUTE, waiting_bytes=100)}
    status = with_following(
        replace(status, databases={**status.databases, "app": app}), {"app": follow}, lacking, blind_since=None
    )
    text = metrics_text(status, alarms_of(status, NOON), now=NOON).decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {sample.name: set(sample.labels) for sample in samples} | {"up": set()}


def dashboard() -> dict[str, Any]:
    """The dashboard."""
    found: dict[str, Any] = json.loads((_GRAFANA / "backupd.json").read_text())
    return found


def rules() -> list[dict[str, Any]]:
    """All alert rules."""
    return [rule for group in yaml.safe_load(_RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """All panels but the headings of rows."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> list[str]:
    """The expressions of all panels."""
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def variable_queries() -> list[tuple[str, str]]:
    """The selectors and the labels that the variables of the dashboard ask for."""
    asked = [each["query"]["query"] for each in dashboard()["templating"]["list"] if each["type"] == "query"]
    return [re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups() for query in asked]  # type: ignore[union-attr,misc]


def in_annotations() -> list[str]:
    """The expressions that the texts of alerts ask for."""
    texts = [text for rule in rules() for text in rule["annotations"].values()]
    return [query for text in texts for query in re.findall(r'printf "(time[^"]*)"', text)]


def metrics_in(query: str) -> set[str]:
    """The names of metrics in an expression: every word that is no function, keyword, label or duration."""
    bare = re.sub(r"\[[^\]]*\]", "", re.sub(r"\{[^{}]*\}", "", _GROUPED.sub("", _STRING.sub('""', query))))
    words = re.findall(r"(?<![\w.])([a-zA-Z_:][\w:]*)\b(?!\s*\()", bare)
    return {word for word in words if word not in _KEYWORDS}


def all_queries() -> Iterator[str]:
    """Every expression of both files."""
    yield from queries()
    yield from (selector for selector, _ in variable_queries())
    yield from (rule["expr"] for rule in rules())
    yield from in_annotations()


def test_words_of_an_expression_are_told_apart() -> None:
    """The test would find a metric that does not exist, wherever it stands, and no function or label."""
    query = 'sum by (kind) (rate(a_total{b="c_total"}[5m])) / on (x) group_left (y) d unless time() - e > 1e6'
    assert metrics_in(query) == {"a_total", "d", "e"}


def test_every_metric_in_both_files_exists(exposed: dict[str, set[str]]) -> None:
    """A panel or a rule with a metric that is not exposed would be empty, and silent, without end."""
    asked = [metrics_in(query) for query in all_queries()]
    assert all(asked)
    assert set().union(*asked) <= exposed.keys()
    texts = [(_GRAFANA / name).read_text() for name in ("backupd.json", "alerts.yml", "alerts_test.yml")]
    named = {name for text in texts for name in re.findall(r"\bbackupd_[a-z_]+", text)}
    assert named <= exposed.keys()


def test_the_dashboard_has_every_metric(exposed: dict[str, set[str]]) -> None:
    """What a daemon reports is somewhere on the dashboard."""
    assert exposed.keys() - {"up"} == set().union(*map(metrics_in, queries()))


def test_every_label_in_both_files_exists(exposed: dict[str, set[str]]) -> None:
    """Matchers name labels of their metric, groups those of a metric in the expression."""
    for query in all_queries():
        for metric, matchers in _SELECTOR.findall(query):
            assert set(_MATCHER.sub(r"\1", matchers).replace(" ", "").split(",")) <= exposed[metric] | _OF_PROMETHEUS
        known = set().union(*(exposed[metric] for metric in metrics_in(query))) | _OF_PROMETHEUS
        for group in _GROUPED.findall(query):
            assert {label.strip() for label in group.split(",")} - {""} <= known
    for selector, label in variable_queries():
        assert label in exposed[min(metrics_in(selector))] | _OF_PROMETHEUS


def test_labels_in_the_texts_of_alerts_and_legends_exist(exposed: dict[str, set[str]]) -> None:
    """A label that the result does not have would leave a hole in the sentence."""
    for rule in rules():
        used = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
        assert used <= set().union(*(exposed[each] for each in metrics_in(rule["expr"]))) | _OF_PROMETHEUS, rule
    for panel in panels():
        for target in panel["targets"]:
            used = set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
            assert used <= set().union(*(exposed[each] for each in metrics_in(target["expr"]))), panel["title"]


def test_the_dashboard_can_be_imported() -> None:
    """The data source is chosen on import, ids are unique, and no two panels lie on each other."""
    found = dashboard()
    assert found["uid"]
    assert "id" not in found
    assert found["schemaVersion"] >= 36
    first, *others = found["templating"]["list"]
    assert (first["name"], first["type"], first["query"]) == ("datasource", "datasource", "prometheus")
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert all(each["datasource"] == source for each in others)
    for panel in panels():
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["datasource"] == source
        assert all(target["datasource"] == source for target in panel["targets"])
    ids = [panel["id"] for panel in found["panels"]]
    assert len(set(ids)) == len(ids)
    for one, other in combinations([panel["gridPos"] for panel in found["panels"]], 2):
        assert one["x"] + one["w"] <= 24
        is_apart = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert is_apart or one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"], (one, other)


def test_variables_of_the_dashboard_exist() -> None:
    """An expression uses a variable that is defined, and each of them is used."""
    names = {variable["name"] for variable in dashboard()["templating"]["list"]}
    used = re.findall(r"\$\{?(\w+)", (_GRAFANA / "backupd.json").read_text())
    assert set(used) == names | {"__all"}


def test_every_kind_of_alarm_has_a_rule() -> None:
    """The severity says which alarms are red, and the text where the page explains the kind."""
    kinds = dict(re.findall(r"^([a-z-]+) {2,}.*?( red)?$", alarms.__doc__ or "", flags=re.MULTILINE))
    found = {}
    for rule in rules():
        if match := re.fullmatch(r'backupd_alarm\{kind="([a-z-]+)"\}', rule["expr"]):
            kind = match[1]
            found[kind] = rule["labels"]["severity"]
            assert f'"{kind}" in docs/operations.md' in " ".join(rule["annotations"]["description"].split())
            assert rule["alert"] == "Backupd" + "".join(part.title() for part in kind.split("-"))
    assert found == {kind: "critical" if is_red else "warning" for kind, is_red in kinds.items()}
    assert all(f"### `{kind}`" in (DOCS / "operations.md").read_text() for kind in found)


def test_every_alert_says_what_about_which_database_and_store_and_what_to_do(exposed: dict[str, set[str]]) -> None:
    """A result for a database or a store names it, and one for all of them says so; each has a command or a place."""
    of_one_database = {"unproven", "gaps", "read-differs", "vanished"}
    of_the_daemon = {"nothing-matches", "daemon-silent", "config-refused"}
    assert len({rule["alert"] for rule in rules()}) == len(rules())
    for rule in rules():
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in {"critical", "warning"}
        text = " ".join(rule["annotations"].values())
        about = set().union(*(exposed[each] for each in metrics_in(rule["expr"]))) & _BOTH
        if groups := _GROUPED.findall(rule["expr"]):
            about &= set(re.findall(r"\w+", groups[0]))
        kind = re.search(r'kind="([a-z-]+)"', rule["expr"])
        if kind and kind[1] in of_one_database:
            about -= {"store"}
        if kind and kind[1] in of_the_daemon:
            about = set()
        assert all(f"$labels.{label}" in text for label in about), rule["alert"]
        assert "store" in text or "databases]]" in text, rule["alert"]
        assert re.search(r"backupd (now|status|doctor|list|prune|restore|verify)|docker compose|\bdf\b|docs/", text)


@needs_promtool
def test_promtool_accepts_the_rules() -> None:
    """Prometheus itself reads every expression and every template."""
    _promtool("check", "rules", str(_RULES))


@needs_promtool
def test_rules_fire_when_they_should_and_not_before() -> None:
    """The cases in alerts_test.yml, with the text that people get."""
    _promtool("test", "rules", str(_GRAFANA / "alerts_test.yml"))


@needs_promtool
def test_promtool_accepts_every_query_of_the_dashboard(tmp_path: Path) -> None:
    """Written as rules, with a value in the place of each variable."""
    written = [
        {"record": f"panel:number{number}", "expr": re.sub(r"\$\w+", "any", query)}
        for number, query in enumerate(queries())
    ]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": written}]}))
    _promtool("check", "rules", str(tmp_path / "queries.yml"))


def _promtool(*arguments: str) -> None:
    finished = subprocess.run(["promtool", *arguments], check=False, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
