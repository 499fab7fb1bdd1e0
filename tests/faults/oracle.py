"""The judge: each snapshot that is listed is a state of the ledger or reported, and the health check was truthful."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from faults.images import NotAStateError, Seen, read_state

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from faults.ledger import Ledger, State
    from faults.watch import Sample, Taken


class Named(NamedTuple):
    """A snapshot in one store."""

    store: str
    database: str
    id: str

    def __str__(self) -> str:
        return f"{self.database}@{self.id} in {self.store}"


class Standing(Enum):
    """What has become of a snapshot that was listed."""

    LISTED = "listed"
    REMOVED = "removed"
    """No longer listed, and in the trash: rotation did that, or a person."""
    VANISHED = "vanished"
    """No longer listed, and nothing says why."""


class Reader(Protocol):
    """Looks into the stores for the judge."""

    def restore(self, snapshot: Named, target: Path) -> str | None:
        """Restore to a file that does not exist yet; why it could not be done."""

    def standing(self, snapshot: Named) -> Standing:
        """What has become of it by now."""

    def is_reported(self, snapshot: Named) -> bool:
        """Whether backupd says that it is damaged."""


@dataclass(slots=True)
class Known:
    """What is known of a snapshot since it was listed first."""

    state: State | None
    """None for one that did not restore when it was listed first."""
    from_at: float
    """It was in the store at this time, or later (monotonic)."""
    gone_at: float | None = None


@dataclass(slots=True)
class Oracle:
    """Collects violations; none is what a run has to end with."""

    ledgers: Mapping[str, Ledger]
    scratch: Path
    allowed_seconds: float
    """How long a database may be without a current snapshot before the health check has to be red."""
    violations: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    known: dict[Named, Known] = field(default_factory=dict)
    reported: set[Named] = field(default_factory=set)
    _listed_at: float = field(default_factory=time.monotonic)

    def judge(
        self,
        listed: Collection[Named],
        reader: Reader,
        *,
        taken: Iterable[Taken],
        listed_at: float,
        spared: Collection[Named] = (),
    ) -> None:
        """Restore what was `listed` at `listed_at`, but for those `spared`, which were restored before.

        What does not restore, backupd has to have reported.
        The daemon goes on meanwhile: what it removed since the listing is not judged.
        """
        windows = {Named(each.store, each.database, each.id): each for each in taken}
        for ledger in self.ledgers.values():
            ledger.read()
        now = time.monotonic()
        for snapshot in listed:
            if snapshot in spared:
                continue
            try:
                seen = self._restored(snapshot, reader)
            except NotAStateError as error:
                self._judge_broken(snapshot, str(error), reader, now)
                continue
            self._judge_state(snapshot, seen.state, seen.digest, windows.get(snapshot), now)
        for snapshot, known in self.known.items():
            if snapshot not in listed and known.gone_at is None:
                known.gone_at = now
        self._listed_at = listed_at

    def _restored(self, snapshot: Named, reader: Reader) -> Seen:
        target = self.scratch / f"{snapshot.id}.db"
        target.unlink(missing_ok=True)
        try:
            problem = reader.restore(snapshot, target)
            if problem is not None:
                raise NotAStateError(problem)
            return read_state(target)
        finally:
            target.unlink(missing_ok=True)

    def _judge_broken(self, snapshot: Named, problem: str, reader: Reader, now: float) -> None:
        standing = reader.standing(snapshot)
        if standing is Standing.REMOVED:
            self.counts["removed meanwhile"] += 1
            if snapshot in self.known:
                self.known[snapshot].gone_at = now
            return
        self.known.setdefault(snapshot, Known(None, now))
        if standing is Standing.VANISHED:
            self.counts["lost"] += 1
            self.violations.append(f"{snapshot} was listed, is not any more, and is not in the trash: {problem}")
        elif reader.is_reported(snapshot):
            self.reported.add(snapshot)
        else:
            self.counts["lost"] += 1
            self.violations.append(
                f"{snapshot} is listed, is no state of the ledger, and that was not reported: {problem}"
            )

    def _judge_state(self, snapshot: Named, state: State, digest: str, taken: Taken | None, now: float) -> None:
        self.counts["checked"] += 1
        ledger = self.ledgers[snapshot.database]
        entries = ledger.entries_of(state)
        if not any(entry.digest == digest for entry in entries):
            self.counts["lost"] += 1
            self.violations.append(f"{snapshot} restores to {state}, which was never committed")
            return
        before = self.known.get(snapshot)
        if before is not None and before.state is not None:
            if before.state != state:
                self.violations.append(f"{snapshot} restores to {state}, and restored to {before.state} before")
            return
        self.counts["snapshots"] += before is None
        after, until = (taken.after, taken.before) if taken else (self._listed_at, now)
        if before is None and not ledger.was_current(state, after=after, before=until):
            self.violations.append(
                f"{snapshot} holds {state}, which was not current while it was captured: "
                f"{[(entry.begun_at - after, entry.ended_at and entry.ended_at - after) for entry in entries]}, "
                f"captured within {until - after:.2f} s"
            )
        self.known[snapshot] = Known(state, after)

    def judge_health(self, samples: Iterable[Sample], stores: Collection[str]) -> None:
        """Whether the check was ever green although a database was not current in a store for too long."""
        green = [sample for sample in samples if sample.is_green]
        if green:
            self._forget_what_was_gone_before(green[0].at)
        for sample in green:
            for store in stores:
                for database, ledger in self.ledgers.items():
                    since = self._outdated_since(store, database, ledger, sample.at)
                    if sample.at - since > self.allowed_seconds:
                        self.violations.append(
                            f"the health check was green although {database} had not been current in {store} "
                            f"for {sample.at - since:.0f} s"
                        )
                        return

    def _forget_what_was_gone_before(self, at: float) -> None:
        """What was no longer listed then says nothing of any later time."""
        self.known = {
            snapshot: known for snapshot, known in self.known.items() if known.gone_at is None or known.gone_at >= at
        }

    def _outdated_since(self, store: str, database: str, ledger: Ledger, at: float) -> float:
        """The time since which the store lacks the current state at `at`; `at` itself when it does not."""
        there = [
            known.state
            for snapshot, known in self.known.items()
            if (snapshot.store, snapshot.database) == (store, database)
            and known.state is not None
            and known.from_at <= at
            and (known.gone_at is None or at < known.gone_at)
        ]
        if not there:
            return ledger.entries[0].begun_at
        times = [ledger.outdated_since(state, at) for state in there]
        return at if None in times else max(time for time in times if time is not None)
