"""What a daemon proves of encrypted snapshots, with the key and without, and what it makes of damage found by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.extent import slow
from harness.place import create_database
from harness.site import new_site, not_within_a_test

if TYPE_CHECKING:
    from pathlib import Path

    from harness.site import Site

_DAMAGE = 20


def _health(site: Site) -> dict[str, Any]:
    (health,) = site.backupd.json("status")["status"]["databases"]["app"]["stores"].values()
    return dict(health)


@slow
def test_encrypted_snapshots_are_intact_without_a_key_and_proven_with_it(tmp_path: Path) -> None:
    """A machine that has only public keys logs that when it starts, and is healthy anyway."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db", rows=10)
    public = site.backupd.run("keygen", "--output", "key").stdout.strip()
    site.configure(schedule={"drills": not_within_a_test()}, encryption={"recipients": [public]})
    with site.daemon() as daemon:
        started = daemon.wait_for("snapshots are encrypted", recipients=1)
        for reported in (f"keep {site.state}", "without it the next snapshot is full", "without identity_file"):
            assert reported in started["hint"]
        created = daemon.wait_for("snapshot", outcome="created")
        drilled = daemon.wait_for("drill", after=daemon.drill_again())
        assert (drilled["id"], drilled["outcome"], drilled["error"]) == (created["id"], "intact", None)
        assert "no identity" in drilled["note"]
        daemon.require_green()
        health = _health(site)
        assert (health["intact_id"], health["proven_id"]) == (created["id"], None)
        assert "  intact " in site.backupd.run("status").stdout
        assert "  intact " in site.backupd.run("list").stdout
        daemon.stop()
    with site.daemon(BACKUPD_IDENTITY_FILE="key") as daemon:
        assert "who controls this machine can read all snapshots" in daemon.wait_for("snapshots are encrypted")["hint"]
        drilled = daemon.wait_for("drill", after=daemon.drill_again())
        assert drilled["outcome"] == "proven"
        daemon.require_green()
        assert _health(site)["proven_id"] == created["id"]
        assert site.listed()[0]["proven_at"] is not None


def test_damage_found_by_verify_is_repaired_by_the_next_round(tmp_path: Path) -> None:
    """`verify` beside the daemon finds it; a snapshot stores the pages again; a drill ends the alarm."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db", rows=10)
    site.configure(schedule={"drills": not_within_a_test()})
    with site.daemon() as daemon:
        daemon.wait_for("snapshot", outcome="created")
        (pack,) = site.store.glob("app/packs/*")
        pack.write_bytes(pack.read_bytes()[:-1] + b"?")
        site.backupd.run("verify", code=_DAMAGE)
        assert "a verification found damage" in daemon.require_red("damaged", database="app").stdout
        position = daemon.run_again()
        mended = daemon.wait_for("snapshot", after=position)
        assert (mended["outcome"], mended["replaced_packs"]) == ("created", 1)
        assert daemon.wait_for("drill", after=position)["outcome"] == "proven"
        daemon.require_green()
        site.backupd.run("verify", "--all")
