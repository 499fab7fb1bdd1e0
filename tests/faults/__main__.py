"""`python -m faults`: run a soak, print what it did, and end with 1 when a promise was broken."""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from faults.catalogue import FAULTS
from faults.report import keep, put_in_place, table
from faults.soak import Soak
from faults.world import new_world

if TYPE_CHECKING:
    from collections.abc import Sequence

    from faults.fault import Fault

_ENCRYPTED_SHARE = 0.5
_MOUNTS = "FAULTS_HAVE_MOUNTS"


def main() -> int:
    """Run, and give the exit code."""
    parser = argparse.ArgumentParser(prog="faults", description="break things on purpose, and check every snapshot")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None, help="the same seed, the same faults")
    parser.add_argument("--first", type=int, default=1, help="the round to begin with")
    parser.add_argument("--only", action="append", metavar="FAULT", choices=[fault.name for fault in FAULTS])
    options = parser.parse_args()
    _enter_mounts_of_its_own()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    seed = secrets.randbits(32) if options.seed is None else options.seed
    _say(f"a soak of {options.minutes:g} minutes with seed {seed}")
    home = Path(tempfile.mkdtemp(prefix="soak-"))
    is_encrypted = Random(f"{seed} encryption").random() < _ENCRYPTED_SHARE
    try:
        with new_world(home, is_encrypted=is_encrypted) as world:
            soak = Soak(world, seed=seed, first=options.first, faults=_chosen(options.only), say=_say)
            is_kept = True
            try:
                soak.run(options.minutes * 60)
                is_kept = bool(soak.tally.violations)
            finally:
                if is_kept:
                    keep(world)
                    _say(f"everything is kept in {home}")
    finally:
        put_in_place(home)
    _say(table(soak))
    if is_kept:
        return 1
    shutil.rmtree(home)
    return 0


def _chosen(names: Sequence[str] | None) -> Sequence[Fault]:
    """The faults of these names; all of them when nothing is said."""
    return [fault for fault in FAULTS if names is None or fault.name in names]


def _enter_mounts_of_its_own() -> None:
    """Enter a mount namespace where that is permitted, so that mounts end with this process."""
    if _MOUNTS not in os.environ and os.geteuid() == 0 and shutil.which("unshare"):
        os.environ[_MOUNTS] = "yes"
        os.execvp("unshare", ["unshare", "--mount", sys.executable, "-m", "faults", *sys.argv[1:]])


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
