from __future__ import annotations

from backupd.cli.output import ProgressLines


def test_progress_lines_are_at_least_five_seconds_apart() -> None:
    """No line comes in the first two seconds or before the size is known, then at most one every five seconds."""
    now = 100.0
    lines: list[str] = []
    report = ProgressLines("app", done="captured", moved="stored", write=lines.append, clock=lambda: now)
    for second in range(20):
        now = 100.0 + second
        report(second * 10**8, 0 if second < 4 else 2 * 10**9, second * 10**6)
    assert lines == [
        "app: 400 MB of 2.0 GB captured (100 MB/s), 4.0 MB stored",
        "app: 900 MB of 2.0 GB captured (100 MB/s), 9.0 MB stored",
        "app: 1.4 GB of 2.0 GB captured (100 MB/s), 14.0 MB stored",
        "app: 1.9 GB of 2.0 GB captured (100 MB/s), 19.0 MB stored",
    ]
