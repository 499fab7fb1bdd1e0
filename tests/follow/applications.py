"""What applications and administrators do with a database in WAL mode: one method for each kind of step.

Each step takes a random generator of its own, so that a history stays much the same when a step is left out of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import apsw

from follow.database import Copy, Database
from follow.log_files import (
    BIG_ENDIAN,
    FRAME_HEADER_BYTES,
    HEADER_BYTES,
    LITTLE_ENDIAN,
    committed_frames,
    header_of,
    log_bytes,
)

if TYPE_CHECKING:
    from random import Random

_READER = "reader"
_PAGE_SIZES = (512, 1024, 2048, 4096, 65536)
_MOST_REWRITTEN_BYTES = 200_000
_PROMPT_PART = 0.5
"""How often a poll and a reset follow at once."""
MODES = {
    "passive": apsw.SQLITE_CHECKPOINT_PASSIVE,
    "full": apsw.SQLITE_CHECKPOINT_FULL,
    "restart": apsw.SQLITE_CHECKPOINT_RESTART,
    "truncate": apsw.SQLITE_CHECKPOINT_TRUNCATE,
}


class Applications(Database):
    """A database, and what happens to it."""

    _copy: Copy | None = None

    def step_commit(self, chosen: Random) -> None:
        """Commit one transaction, perhaps with polls in the middle of its writes."""
        connection = self._connection(chosen)
        self._plan_polls(chosen)
        self._transaction(connection, chosen, chosen.choice((1, 1, 1, 2, 5, 20)))

    def step_commits(self, chosen: Random) -> None:
        """Commit some small transactions."""
        for _ in range(chosen.randrange(2, 6)):
            self._transaction(self._connection(chosen), chosen, 1)

    def step_spill(self, chosen: Random) -> None:
        """Commit more than the cache holds, some pages of it several times: frames are rewritten in place."""
        connection = self._connection(chosen)
        self._run(connection, "PRAGMA cache_size = 5")
        self._plan_polls(chosen, writes=150)
        self._transaction(connection, chosen, chosen.randrange(30, 90), sweeps=chosen.randrange(3))

    def step_rollback(self, chosen: Random) -> None:
        """Roll back, after frames were spilled into the log."""
        connection = self._connection(chosen)
        self._run(connection, f"PRAGMA cache_size = {chosen.choice((5, 5, 50))}")
        self._plan_polls(chosen, writes=100)
        self._transaction(connection, chosen, chosen.randrange(1, 60), sweeps=chosen.randrange(3), end="ROLLBACK")

    def step_savepoint(self, chosen: Random) -> None:
        """Commit a transaction of which a part was rolled back after it was spilled."""
        connection = self._connection(chosen)
        self._run(connection, "PRAGMA cache_size = 5", "BEGIN IMMEDIATE")
        self._plan_polls(chosen, writes=60)
        self._change(connection, chosen, chosen.randrange(1, 20))
        self._run(connection, "SAVEPOINT part")
        self._change(connection, chosen, chosen.randrange(1, 40))
        self._run(connection, "ROLLBACK TO part", "RELEASE part")
        self._change(connection, chosen, chosen.randrange(3))
        self._end(connection, "COMMIT")

    def step_shrink(self, chosen: Random) -> None:
        """Delete rows, and return free pages to the file system if that is possible."""
        connection = self._connection(chosen)
        self._run(connection, f"DELETE FROM t WHERE k % {chosen.randrange(2, 6)}")
        self._committed(connection)
        self._plan_polls(chosen)
        self._run(connection, f"PRAGMA incremental_vacuum({chosen.choice((0, 1, 3, 10))})")
        self._committed(connection)

    def step_vacuum(self, chosen: Random) -> None:
        """Rebuild the database inside of WAL mode."""
        connection = self._connection(chosen)
        self._plan_polls(chosen, writes=60)
        self._run(connection, "VACUUM")
        self._committed(connection)

    def step_settings(self, chosen: Random) -> None:
        """Change what a connection does by itself."""
        connection = self._connection(chosen)
        limit = chosen.choice((-1, -1, chosen.randrange(20_000)))
        self._run(
            connection,
            f"PRAGMA synchronous = {chosen.randrange(3)}",
            f"PRAGMA cache_size = {chosen.choice((5, 10, 100))}",
            f"PRAGMA wal_autocheckpoint = {chosen.choice((0, 0, 0, 10, 50))}",
            f"PRAGMA journal_size_limit = {limit if self._is_no_frame_boundary(limit) else -1}",
        )

    @staticmethod
    def _is_no_frame_boundary(limit: int) -> bool:
        """Whether a log that is cut there shows it: one that is cut right behind a commit looks complete."""
        return all((limit - HEADER_BYTES) % (size + FRAME_HEADER_BYTES) for size in _PAGE_SIZES)

    def step_begin_reading(self, chosen: Random) -> None:
        """Hold a snapshot, so that checkpoints cannot finish and the log cannot be reset."""
        if _READER not in self._connections:
            connection = self._open()
            self._connections[_READER] = connection
            self._run(connection, "BEGIN", "SELECT count(*) FROM t")

    def step_end_reading(self, chosen: Random) -> None:
        """Let go of that snapshot."""
        if (connection := self._connections.pop(_READER, None)) is not None:
            connection.close()

    def step_checkpoint_passive(self, chosen: Random) -> None:
        """Copy pages into the database, as far as no other connection is in the way."""
        self._checkpoint("passive", chosen)

    def step_checkpoint_full(self, chosen: Random) -> None:
        """Copy all pages."""
        self._checkpoint("full", chosen)

    def step_checkpoint_restart(self, chosen: Random) -> None:
        """Copy all pages, and let the next writer begin the log again."""
        self._checkpoint("restart", chosen)

    def step_checkpoint_truncate(self, chosen: Random) -> None:
        """Copy all pages, and cut the log to nothing."""
        self._checkpoint("truncate", chosen)

    def _checkpoint(self, mode: str, chosen: Random) -> None:
        self._connection(chosen).wal_checkpoint(mode=MODES[mode])

    def step_reset(self, chosen: Random) -> None:
        """Commit, checkpoint, and begin the log again, with a commit or a rollback; perhaps a limit cuts it."""
        for _ in range(chosen.randrange(4)):
            self._transaction(self._connection(chosen), chosen, chosen.choice((1, 1, 2, 10)))
        connection = self._connection(chosen)
        limit = int(len(self._read_log() or b"") * chosen.random())
        cuts = chosen.random() < 0.3 and self._is_no_frame_boundary(limit)
        self._run(connection, f"PRAGMA journal_size_limit = {limit if cuts else -1}")
        self._checkpoint("restart", chosen)
        self._plan_polls(chosen)
        if chosen.random() < 0.3:
            self._run(connection, "PRAGMA cache_size = 5")
            self._transaction(connection, chosen, chosen.randrange(8, 40), sweeps=chosen.randrange(3), end="ROLLBACK")
        else:
            self._transaction(connection, chosen, chosen.choice((1, 1, 3)))

    def step_close_one(self, chosen: Random) -> None:
        """Close a connection."""
        if self._connections:
            self._connections.pop(chosen.choice(list(self._connections))).close()

    def step_close_all(self, chosen: Random) -> None:
        """Close all connections: the last one removes the log."""
        self._close_all()

    def step_kill(self, chosen: Random) -> None:
        """Kill the applications; the next one recovers the log."""
        self._close_all(is_killed=True)
        self._recovered(chosen)

    def step_copy(self, chosen: Random) -> None:
        """Remember the files as they are now, as what the disk has, or as what an administrator copied."""
        self._copy = Copy(self._database.read_bytes(), self._read_log(), self.states.current, self._is_in_log)

    def step_put_back(self, chosen: Random) -> None:
        """Put the copy back while the application does not run: into the same files, or with another log file."""
        if self._copy is None:
            return
        self._close_all(is_killed=chosen.random() < 0.7)
        self._put_back(self._copy.database, self._copy.log, is_same_file=chosen.random() < 0.7)
        self._return_to(self._copy.state, is_in_log=self._copy.is_in_log)
        for _ in range(chosen.randrange(4)):
            self._transaction(self._connection(chosen), chosen, 1)

    def step_rename_in(self, chosen: Random) -> None:
        """Put the copy in place by renaming: database and log are other files."""
        if self._copy is None:
            return
        self._close_all(is_killed=chosen.random() < 0.5)
        self._spare.write_bytes(self._copy.database)
        self._spare.rename(self._database)
        self._remove_side_files()
        if self._copy.log is not None:
            self._spare.write_bytes(self._copy.log)
            self._spare.rename(self._log)
        self._return_to(self._copy.state, is_in_log=self._copy.is_in_log)

    def step_journal_mode(self, chosen: Random) -> None:
        """Leave WAL mode, commit, perhaps change the page size, and enter it again."""
        self._close_all()
        connection = self._connection(chosen)
        self._run(connection, f"PRAGMA journal_mode = {chosen.choice(('delete', 'truncate', 'persist'))}")
        self._committed(connection)
        for _ in range(chosen.randrange(3)):
            self._transaction(connection, chosen, 1)
        if chosen.random() < 0.4:
            self._run(connection, f"PRAGMA page_size = {chosen.choice((512, 1024, 2048))}", "VACUUM")
            self._committed(connection)
        if chosen.random() < 0.3:
            self._poll()
        self._run(connection, "PRAGMA journal_mode = wal")
        self._committed(connection)

    def step_rewrite_log(self, chosen: Random) -> None:
        """Replace the log by one with the same frames, in the other byte order or just before its salt wraps around."""
        self._close_all(is_killed=True)
        log = self._read_log() or b""
        if len(log) > _MOST_REWRITTEN_BYTES:
            return
        header, frames = header_of(log), committed_frames(log)
        if header is None or not frames:
            return
        salt = chosen.choice((0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFE, chosen.getrandbits(32)))
        magic = chosen.choice((LITTLE_ENDIAN, BIG_ENDIAN, BIG_ENDIAN))
        salts = (salt, chosen.getrandbits(32))
        self._log.write_bytes(
            log_bytes(frames, page_size=header.page_size, salts=salts, magic=magic, sequence=header.sequence + 1)
        )
        self._copy = None  # SQLite never puts a new header before frames that are in no database
        self.counts[f"logs of {'big' if magic == BIG_ENDIAN else 'little'} endian order"] += 1
        self._recovered(chosen)
        if chosen.random() < _PROMPT_PART:
            self._poll()
            self.step_reset(chosen)
