"""Orders over HTTP, one after another, as customers place them.

    python -m creditrobot.load SECONDS

Prints the number of the last payment that the service acknowledged. An order that fails is placed again.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request

_URL = "http://127.0.0.1:8000/orders"


def _order(number: int) -> int:
    content = json.dumps({"email": f"customer-{number % 50}@example.org"}).encode()
    request = urllib.request.Request(_URL, content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return int(json.load(answer)["payment"])


def main() -> None:
    """Place orders until the time is over, and at least one."""
    until = time.monotonic() + float(sys.argv[1])
    placed, last = 0, 0
    while time.monotonic() < until or not last:
        try:
            last = _order(placed)
        except urllib.error.URLError:
            time.sleep(0.1)
        placed += 1
    print(last)  # noqa: T201


if __name__ == "__main__":
    main()
