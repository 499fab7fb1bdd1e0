"""The command line: each verb has a file that parses, calls a use case, and prints.

`--help` and completion must answer at once, so only click and the errors are imported before a verb runs.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from backupd.cli import interrupts, output
from backupd.errors import limit_reached

_PRIVATE_UMASK = 0o077


def run() -> NoReturn:
    """Run the command line of this process and leave with its exit code."""
    # Whatever is made on the way to a snapshot holds the database's content, or tells what is in it.
    os.umask(_PRIVATE_UMASK)
    # numpy's linear algebra would start a thread per core that only spins; page maps need none of it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    interrupts.raise_on_signals()
    try:
        from backupd.cli.boundary import exit_code_of  # noqa: PLC0415  (signals are to be handled before imports)

        code = exit_code_of(sys.argv[1:])
    except KeyboardInterrupt:
        code = interrupts.report()
    except (ImportError, MemoryError, OSError) as error:
        limit = limit_reached(error)
        if limit is None:
            raise
        output.print_failure(limit)
        code = limit.exit_code
    interrupts.leave(code)
