"""A soak: rounds of one fault each, chosen by a seed, with the judge after every one."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from random import Random
from typing import TYPE_CHECKING

from faults import system_calls
from faults.catalogue import FAULTS
from faults.inspection import Inspection
from faults.moments import Moments, is_followed
from faults.oracle import Oracle
from faults.watch import Watch
from faults.world import GRACE_SECONDS, KEPT, SCHEDULE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from faults.fault import Fault, Felt
    from faults.ledger import State
    from faults.oracle import Named
    from faults.watch import Sample
    from faults.world import World

_SLACK_SECONDS = 10.0
_GREEN_WITHIN_SECONDS = 150.0
_FELT_WITHIN_SECONDS = 40.0
_TIDY_EVERY = 20
_ASKED_AGAIN_SECONDS = 5.0
_EVERY_SECONDS = 0.5
_LISTED_EVERY_SECONDS = 2.0
_BUSY = 11
_TRIES = 5


@dataclass(slots=True)
class Tally:
    """What was done so far."""

    seed: int
    rounds: int = 0
    turns: Counter[str] = field(default_factory=Counter)
    """How often each fault had its turn."""
    injected: Counter[str] = field(default_factory=Counter)
    """How often each fault had an effect."""
    impossible: dict[str, str] = field(default_factory=dict)
    """Faults that cannot be injected here, and why."""
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0
    tidied: int = 0
    """How often nothing was found that no snapshot needs."""
    slowest_point: float = 0.0
    """The longest time (seconds) that recovery points needed to pass the end of a fault."""
    slowest_green: float = 0.0
    """The longest time (seconds) that it took to be green after a fault."""


def deck(seed: int, turn: int, faults: Sequence[Fault] = FAULTS) -> list[Fault]:
    """Every fault once, in an order that the seed decides; another one in each turn."""
    faults = [*faults]
    Random(f"{seed} deck {turn}").shuffle(faults)
    return faults


class BrokenPromiseError(Exception):
    """A violation: the soak ends there, with everything as it is."""


class Soak:
    """Rounds in a world. `run` returns after the first violation, and else when its time is over."""

    def __init__(
        self,
        world: World,
        *,
        seed: int,
        first: int = 1,
        faults: Sequence[Fault] = FAULTS,
        say: Callable[[str], None] = print,
    ) -> None:
        scratch = world.home / "judge"
        scratch.mkdir()
        self.tally = Tally(seed)
        self.oracle = Oracle(
            {name: writer.ledger for name, writer in world.writers.items()},
            scratch,
            SCHEDULE_SECONDS + GRACE_SECONDS + _SLACK_SECONDS,
        )
        self.moments = Moments(self.oracle.ledgers, (world.disk, world.s3), world.disturbances)
        self.is_encrypted = world.encryption.is_on
        self._world = world
        self._say = say
        self._first = first
        self.faults = faults
        self._watch = Watch(world)
        self._inspection = Inspection(world, scratch / "reader")
        self._judged_samples = 0
        self._possible = self._possible_faults()

    def run(self, seconds: float) -> None:
        """Go on for so long; a round that has begun is finished, and the stores are tidied at the end."""
        began = time.monotonic()
        try:
            self._wait_for_green(0)
            self._snapshot_by_hand(0)  # green may mean that none is due yet
            self._judge()
            number = self._first
            first_round_at = time.monotonic()  # a busy machine takes long until then
            while time.monotonic() - first_round_at < seconds:
                self._round(number)
                number += 1
                if self.tally.rounds % _TIDY_EVERY == 0:
                    self._tidy()
            self._tidy()
            self._require_commits()
            self._require_every_fault()
        except BrokenPromiseError:
            return
        finally:
            self.tally.seconds = time.monotonic() - began
            self._watch.close()

    def _round(self, number: int) -> None:
        turn, position = divmod(number - 1, len(self.faults))
        fault = deck(self.tally.seed, turn, self.faults)[position]
        if fault.name in self.tally.impossible:
            return
        chosen = Random(f"{self.tally.seed} round {number}")
        began = time.monotonic()
        self.tally.rounds += 1
        self.tally.turns[fault.name] += 1
        self._say(f"round {number:3} {fault.name}")
        trigger = chosen.choice([self._world.request_snapshots, self._world.miss_a_round, self._world.snapshot])
        with fault.injected(self._world, chosen) as felt:
            red = self._suffer(fault, felt, trigger)
            if felt():
                self.tally.injected[fault.name] += 1
        ended_at = datetime.now(UTC)
        green = self._wait_for_green(number)
        self._snapshot_by_hand(number)
        self._wait_for_recovery_points(number, ended_at)
        self._wait_until_followed(number, fault, ended_at)
        judged = -time.monotonic()
        self._judge(number, fault, followed=dict.fromkeys(self._followed(fault), ended_at))
        judged += time.monotonic()
        self._say(
            f"round {number:3}: {'felt' if felt() else 'not felt'}, red after {red:.1f} s, green after {green:.1f} s,"
            f" judged in {judged:.1f} s, in all {time.monotonic() - began:.1f} s; {self._shown()}"
        )

    def _suffer(self, fault: Fault, felt: Felt, trigger: Callable[[], object]) -> float:
        """Have snapshots tried while a fault lasts; seconds until the health check was red."""
        began = time.monotonic()
        trigger()
        is_reported = not fault.stops
        while not is_reported and time.monotonic() - began < fault.reported_within_seconds:
            is_reported = self._watch.wait_for(self._is_reported(fault.stops), seconds=_ASKED_AGAIN_SECONDS)
            self._world.request_snapshots()
        if not is_reported:
            self._violated(
                f"{fault.name}: not reported within {fault.reported_within_seconds:.0f} s: {self._watch.samples[-1]}"
            )
        red = time.monotonic() - began
        while not felt() and time.monotonic() - began < _FELT_WITHIN_SECONDS:
            self._world.snapshot("--full")
        return red if fault.stops else 0.0

    def _is_reported(self, places: Sequence[str]) -> Callable[[Sample], bool]:
        shown = {"disk": self._world.disk, "s3": self._world.s3}
        wanted = [shown.get(place, place) for place in places]

        def is_reported(sample: Sample) -> bool:
            return sample.is_green is False and all(any(each in alarm for alarm in sample.alarms) for each in wanted)

        return is_reported

    def _wait_for_green(self, number: int) -> float:
        began = time.monotonic()
        if not self._watch.wait_for(lambda sample: bool(sample.is_green), seconds=_GREEN_WITHIN_SECONDS):
            self._violated(f"round {number}: not green within {_GREEN_WITHIN_SECONDS:.0f} s: {self._watch.samples[-1]}")
        taken = time.monotonic() - began
        self.tally.slowest_green = max(self.tally.slowest_green, taken)
        return taken

    def _snapshot_by_hand(self, number: int) -> None:
        """An ordinary run, which has to succeed."""
        for _ in range(_TRIES):
            finished = self._world.snapshot()
            if finished.code != _BUSY:
                break
        if finished.code != 0:
            self._violated(
                f"round {number}: `backupd now` ended with {finished.code}: {finished.stdout}{finished.stderr}"
            )

    def _wait_for_recovery_points(self, number: int, after: datetime) -> None:
        """Everything that was committed while a fault lasted, and can be restored, is stored soon afterwards."""
        began = time.monotonic()
        wanted = [(store, self._world.writers["wal"].name) for store in (self._world.disk, self._world.s3)]
        while True:
            points = self._inspection.recovery_points()
            if all(each in points and points[each] > after for each in wanted):
                break
            if time.monotonic() - began > _GREEN_WITHIN_SECONDS:
                self._violated(f"round {number}: the recovery points are {points}, and the fault was over at {after}")
            time.sleep(_EVERY_SECONDS)
        self.tally.slowest_point = max(self.tally.slowest_point, (datetime.now(UTC) - after).total_seconds())

    def _wait_until_followed(self, number: int, fault: Fault, after: datetime) -> None:
        """Commits are stored again soon after a fault, in a window that names a snapshot to begin with."""
        began = time.monotonic()
        for store, database in self._followed(fault):
            while not is_followed(spans := self._inspection.spans(store, database), after):
                if time.monotonic() - began > _GREEN_WITHIN_SECONDS:
                    self._violated(
                        f"round {number}: of {database} in {store} no moment after {after} can be restored, when the "
                        f"fault was over: {spans[-2:]}"
                    )
                time.sleep(_LISTED_EVERY_SECONDS)

    def _followed(self, fault: Fault) -> list[tuple[str, str]]:
        """What is followed into stores (store and database) that `fault` takes no segment from."""
        lost = self._lost(fault)
        return [(each, self._world.writers["wal"].name) for each in (self._world.disk, self._world.s3) if each != lost]

    def _lost(self, fault: Fault | None) -> str | None:
        """The store of which segments may be gone after `fault`."""
        return {"disk": self._world.disk, "s3": self._world.s3}.get(fault.loses) if fault else None

    def _judge(
        self,
        number: int = 0,
        fault: Fault | None = None,
        followed: Mapping[tuple[str, str], datetime] | None = None,
    ) -> None:
        self._inspection.begin_again()
        chosen = Random(f"{self.tally.seed} judge {number}")
        before = len(self.oracle.violations)
        points = self._inspection.recovery_points()
        at = time.monotonic()
        listed = self._inspection.listed()
        self.oracle.judge(
            listed,
            self._inspection,
            taken=self._world.taken,
            listed_at=at,
            spared=set() if fault is None else self._spared(listed, chosen),
        )
        samples = self._watch.samples[self._judged_samples :]
        self._judged_samples += len(samples)
        self.oracle.judge_health(samples[::2], (self._world.disk, self._world.s3))
        lost = self._lost(fault)
        of_moments = self.moments.judge(
            self._inspection,
            chosen,
            points=points,
            snapshots=self._states_of(listed),
            followed=followed,
            may_lose=[] if lost is None else [lost],
        )
        for each in [*self.oracle.violations[before:], *of_moments, *self._world.take_bugs()]:
            self._violated(f"round {number}: {each}")

    def _spared(self, listed: Iterable[Named], chosen: Random) -> set[Named]:
        """Most of the older snapshots that were restored before: while commits are kept, so are all snapshots."""
        spared: set[Named] = set()
        ordered = sorted(listed, key=lambda each: (each.store, each.database, each.id))
        for _, group in groupby(ordered, key=lambda each: (each.store, each.database)):
            older = [*group][: -2 * KEPT]
            spared.update(chosen.sample(older, max(0, len(older) - KEPT)))
        return {each for each in spared if each in self.oracle.known and self.oracle.known[each].state is not None}

    def _states_of(self, listed: Iterable[Named]) -> dict[tuple[str, str], set[State]]:
        """The states of those snapshots that restore, by store and database."""
        states: dict[tuple[str, str], set[State]] = {}
        for snapshot in listed:
            known = self.oracle.known.get(snapshot)
            if known is not None and known.state is not None:
                states.setdefault((snapshot.store, snapshot.database), set()).add(known.state)
        return states

    def _shown(self) -> str:
        counts, commits = self.oracle.counts, self.moments.counts
        return (
            f"{counts['snapshots']} snapshots, {counts['checked']} checks, {len(self.oracle.reported)} reported, "
            f"{commits['commits in windows']} commits, {commits['commits in gaps']} in gaps"
        )

    def _tidy(self) -> None:
        """Check that no unreferenced object stays beyond the grace."""
        self._world.stop_daemon()
        for each in self._inspection.leftovers():
            self._violated(each)
        self.tally.tidied += 1
        self._world.start_daemon()
        self._wait_for_green(0)
        self._judge()

    def _require_commits(self) -> None:
        """A judge who has seen nothing has found nothing."""
        for what in ("commits checked", "moments restored"):
            if not self.moments.counts[what]:
                self._violated(f"no {what}")

    def _require_every_fault(self) -> None:
        if self.tally.rounds < len(self._possible):
            return
        for fault in self._possible:
            if not self.tally.injected[fault.name]:
                self._violated(f"{fault.name} was never injected, although there was time for each fault")

    @property
    def not_reached(self) -> list[Fault]:
        """Faults that could be injected here, and had no turn yet."""
        return [fault for fault in self._possible if not self.tally.turns[fault.name]]

    def _possible_faults(self) -> list[Fault]:
        lacking = {
            "disks": None if self._world.disks else "file systems cannot be mounted here",
            "clock": None if self._world.clock else "faketime is not installed",
            "strace": system_calls.why_not(),
        }
        for fault in self.faults:
            reason = lacking.get(fault.needs)
            if reason is not None:
                self.tally.impossible[fault.name] = reason
        return [fault for fault in self.faults if fault.name not in self.tally.impossible]

    def _violated(self, what: str) -> None:
        self._say(f"VIOLATION: {what}")
        self.tally.violations.append(what)
        raise BrokenPromiseError(what)
