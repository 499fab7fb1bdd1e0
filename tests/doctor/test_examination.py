from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from harness.loopback import loopback
from harness.place import connected, create_database

from backupd.config import load
from backupd.doctor.examination import TimeLimits, examine
from backupd.doctor.findings import Verdict, exit_code_of
from backupd.errors import ExitCode
from backupd.state import StateDirectory

if TYPE_CHECKING:
    from pathlib import Path

    from harness.loopback import Handler, Request

    from backupd.doctor.findings import Finding


def _examined(tmp_path: Path, text: str, limits: TimeLimits = TimeLimits()) -> dict[tuple[str, str], Finding]:  # noqa: B008
    file = tmp_path / "backupd.toml"
    file.write_text(text)
    settings = load(file, {"BACKUPD_STATE_DIR": str(tmp_path / "state")})
    findings = examine(settings, StateDirectory(settings.state_dir), {}, limits=limits)
    return {(finding.subject, finding.check): finding for finding in findings}


def test_what_hangs_is_reported_and_delays_nothing(tmp_path: Path) -> None:
    """A store that never answers and a locked database are one error each, and the others are checked."""
    never = threading.Event()

    def silent(_handler: Handler, _request: Request) -> None:
        never.wait(30)

    fine = ("database app", "opens"), (f"store {tmp_path}/backups", "delete")
    for name in ("app.db", "locked.db"):
        create_database(tmp_path / name)
    with loopback(silent) as server, connected(tmp_path / "locked.db", "BEGIN EXCLUSIVE"):
        text = (
            '[[databases]]\npath = "locked.db"\n[[databases]]\npath = "app.db"\n[[stores]]\nurl = "backups"\n'
            f'[[stores]]\nurl = "s3://bucket/x"\nendpoint_url = "{server.endpoint_url}"\naccess_key_id = "a"\n'
            'secret_access_key = "b"\n'
        )
        for patience in (1, 8):  # a busy machine needs more for what does not hang
            started = time.monotonic()
            limits = TimeLimits(
                directory=5, lock=20, database=1.5 * patience, all_databases=10 * patience, store=patience
            )
            found = _examined(tmp_path, text, limits)
            took = time.monotonic() - started
            if all(each in found and found[each].verdict is Verdict.OK for each in fine):
                break
        never.set()
    assert took < 10 * patience
    locked, bucket = found["database locked", "opens"], found["store s3://bucket/x", "write"]
    assert (locked.verdict, locked.exit_code) == (Verdict.ERROR, ExitCode.BUSY)
    assert f"locked.db could not be inspected within {1.5 * patience:.3g} s" in locked.message
    assert (bucket.verdict, bucket.exit_code) == (Verdict.ERROR, ExitCode.STORE_UNAVAILABLE)
    assert f"did not end within {patience} s" in bucket.message
    assert found["database app", "opens"].verdict is Verdict.OK
    assert found[f"store {tmp_path}/backups", "delete"].verdict is Verdict.OK
    # A database that cannot be looked at may be fine; a store that does not answer keeps no snapshot.
    assert exit_code_of(found.values()) is ExitCode.STORE_UNAVAILABLE


def test_databases_behind_hanging_ones_are_reported_as_not_inspected(tmp_path: Path) -> None:
    """The examination ends in time, whatever their number."""
    text = "".join(f'[[databases]]\npath = "d{number}.db"\n' for number in range(12))
    for number in range(12):
        create_database(tmp_path / f"d{number}.db", rows=1)
    haste = TimeLimits(directory=5, lock=5, database=5, all_databases=-12 * 0.2, store=20)
    found = _examined(tmp_path, f'{text}[[stores]]\nurl = "backups"\n', haste)
    opens = [finding for (_, check), finding in found.items() if check == "opens"]
    assert len(opens) == 12
    assert any("the databases before it" in finding.message for finding in opens)


def test_two_stores_in_one_place_are_a_warning(tmp_path: Path) -> None:
    """Two stores that lead to one directory are a warning, because they hold one copy."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    found = _examined(tmp_path, '[[stores]]\nurl = "real"\n[[stores]]\nurl = "link"\n')
    assert (f"store {tmp_path}/real", "place") not in found
    assert found[f"store {tmp_path}/link", "place"].verdict is Verdict.WARNING


def test_all_stores_on_the_disk_of_the_database_are_a_warning(tmp_path: Path) -> None:
    """Each store on the disk of the database is a warning if none is elsewhere."""
    create_database(tmp_path / "app.db")
    found = _examined(tmp_path, '[[databases]]\npath = "app.db"\n[[stores]]\nurl = "a"\n[[stores]]\nurl = "b"\n')
    disks = [finding.verdict for (_, check), finding in found.items() if check == "disk"]
    assert disks == [Verdict.WARNING, Verdict.WARNING]


def test_a_store_on_the_disk_of_the_database_is_a_note_beside_another_store(tmp_path: Path) -> None:
    """A copy beside the database is fine when there is another one elsewhere."""
    create_database(tmp_path / "app.db")
    with loopback(lambda handler, _: handler.error(403, "AccessDenied")) as server:
        found = _examined(
            tmp_path,
            '[[databases]]\npath = "app.db"\n[[stores]]\nurl = "a"\n[[stores]]\nurl = "s3://bucket/x"\n'
            f'endpoint_url = "{server.endpoint_url}"\naccess_key_id = "a"\nsecret_access_key = "b"\n',
        )
    assert found[f"store {tmp_path}/a", "disk"].verdict is Verdict.NOTE
