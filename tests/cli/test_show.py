from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from harness.command_line import CommandLine


def test_each_fact_has_a_line(stored: CommandLine) -> None:
    """Each fact has a line with its label; the facts are those of the JSON document."""
    snapshot = stored.run("show", "upgrade", "--json", expect=0).document["snapshot"]
    facts = {line[:16].strip(): line[16:] for line in stored.run("show", "upgrade", expect=0).lines}
    writer, source = snapshot["writer"], snapshot["source"]
    assert facts.pop("taken").endswith(" ago")
    assert facts.pop("stored").endswith("were written for this snapshot")
    assert facts.pop("packs").startswith(f"{len(snapshot['packs'])} packs, ")
    assert facts.pop("size").endswith(f" kB, {snapshot['page_count']} pages of 4,096 bytes")
    assert facts.pop("changed").startswith(f"{snapshot['changed_pages']} page")
    assert facts == {
        "snapshot": f"app@{snapshot['id']}",
        "store": f"{stored.directory}/backups",
        "proven": "never: no test restore has looked at it",
        "tags": "upgrade",
        "kind": "regular",
        "sequence": f"2, after {snapshot['base']}",
        "image": "read from the database",
        "encryption": "none",
        "source": f"{stored.directory}/app.db on {writer['host']}",
        "owner": f"uid {writer['uid']}, gid {writer['gid']}, mode {writer['mode']:04o}",
        "written by": f"backupd {writer['backupd_version']}, installation {writer['id']}",
        "journal mode": "wal",
        "encoding": "UTF-8",
        "free pages": "0",
        "user version": "0",
        "application id": "0",
        "sqlite version": source["sqlite_version"],
        "tables": "2: alembic_version, users",
        "schema digest": source["schema_digest"],
        "alembic": "5f3a9b",
        "image digest": snapshot["image_digest"],
    }


def test_json_has_every_value_of_the_manifest(stored: CommandLine) -> None:
    """The manifest's own keys, and those that follow from where, when, and what test restores found."""
    document = stored.run("show", "latest", "--json", expect=0).document
    assert (document.keys(), document["commits"]) == ({"snapshot", "commits", "gap"}, [])
    assert document["snapshot"].keys() == {
        *("store", "taken_at", "image_bytes", "proven_at", "intact_at", "damage"),
        *("format", "id", "sequence", "base", "database", "kind", "tags", "page_size", "page_count", "changed_pages"),
        *("stored_bytes", "replayed", "image_digest", "packs", "page_map", "source", "writer"),
    }
    assert document["snapshot"]["store"] == f"{stored.directory}/backups"


@pytest.mark.parametrize(
    ("reference", "position"),
    [
        (["latest~2"], 0),
        (["app@upgrade"], 1),
        (["2999-01-01T00:00", "--database", "./app.db"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_each_form_of_reference_finds_its_snapshot(
    stored: CommandLine, snapshots: list[dict[str, Any]], reference: list[str], position: int
) -> None:
    """What is said of a snapshot and of its database, in one word or in two, finds the right one."""
    found = stored.run("show", *reference, "--json", expect=0).document["snapshot"]
    assert found["id"] == snapshots[position]["id"]


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        (["other@latest"], 12, "no snapshots of a database other in ", "there are some of: app"),
        (["2020-01-01T00:00"], 12, "no snapshot 2020-01-01T00:00", "backupd list"),
        (["app@latest", "--database", "other"], 2, "names the database app", "leave one of them out"),
        ([], 2, "missing argument 'SNAPSHOT'", "see: backupd show --help"),
    ],
    ids=["other database", "before the first", "two names", "nothing"],
)
def test_unknown_snapshot_is_an_error_with_a_hint(
    stored: CommandLine, arguments: list[str], code: int, message: str, hint: str
) -> None:
    """A snapshot that cannot be found is an error of one line, and a hint of one line."""
    first, second = stored.run("show", *arguments, expect=code).stderr.splitlines()
    assert first.startswith("error: ")
    assert message in first
    assert second.startswith("hint: ")
    assert hint in second
