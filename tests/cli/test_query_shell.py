"""SQLite's shell over a snapshot, at a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.command_line import CommandLine


def test_the_shell_reads_a_snapshot_and_writes_nothing(cli: CommandLine) -> None:
    """Commands and statements work until `.quit`, and a mistake does not end it."""
    cli.run("now", "app.db", expect=0)
    typed = ".tables\nSELECT 'row ' || count(*) FROM users;\nDELETE FROM users;\nSELECT 'still ' || 'here';\n.quit\n"
    finished = cli.run_on_terminal("query", "latest", answer=typed)
    assert finished.code == 0, finished
    assert "alembic_version" in finished.stdout
    for text in ("row 2000", "readonly database", "still here"):
        assert text in finished.stdout
