"""Look for inputs that break a reader: `python tests/fuzz/run.py TARGET SECONDS`.

With atheris installed (it is not needed for the tests), it is guided by coverage; else it mutates at random. What it
finds is written to the current directory. New inputs that reach new lines are kept in DIR when `--keep DIR` is given:
put the shortest of them into tests/fuzz/corpus/TARGET, and the tests replay them for ever.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
from pathlib import Path

_HERE = Path(__file__).parent
sys.path.insert(0, str(_HERE.parent))


def main() -> None:
    """Fuzz one target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("seconds", type=int)
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    try:
        import atheris  # noqa: PLC0415  (only here, and not on every machine)
    except ImportError:
        from harness.fuzzing import TARGETS, seeds  # noqa: PLC0415

        _mutate(TARGETS[arguments.target], seeds(arguments.target), arguments.seconds)
        return
    with atheris.instrument_imports(include=["backupd", "harness.fuzzing"]):
        from harness.fuzzing import TARGETS, seeds  # noqa: PLC0415  (instrumented)
    kept = arguments.keep or Path(f"corpus-{arguments.target}")
    kept.mkdir(parents=True, exist_ok=True)
    corpus = _HERE / "corpus" / arguments.target
    known = [file.read_bytes() for file in corpus.glob("*")] if corpus.is_dir() else []
    for content in [*seeds(arguments.target), *known]:
        (kept / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)
    limits = [f"-max_total_time={arguments.seconds}", "-timeout=10", "-rss_limit_mb=1024", "-max_len=8192"]
    atheris.Setup([sys.argv[0], str(kept), *limits], TARGETS[arguments.target])
    atheris.Fuzz()


def _mutate(target, given: list[bytes], seconds: int) -> None:
    chosen, until, tried = random.Random(), time.monotonic() + seconds, 0
    while time.monotonic() < until:
        content = bytearray(chosen.choice(given))
        for _ in range(chosen.randrange(1, 8)):
            at = chosen.randrange(len(content) + 1)
            content[at : at + chosen.randrange(4)] = chosen.randbytes(chosen.randrange(4))
        try:
            target(bytes(content))
        except BaseException:
            Path("crash").write_bytes(content)
            raise
        tried += 1
    sys.stdout.write(f"{tried} inputs\n")


if __name__ == "__main__":
    main()
