"""What the Dockerfile says of the image."""

from __future__ import annotations

import json
import re
from pathlib import Path

_DOCKERFILE = Path(__file__).parent.parent.parent / "Dockerfile"


def health_check() -> list[str]:
    """The command of its HEALTHCHECK, which finds the state directory in `BACKUPD_STATE_DIR`."""
    text = _DOCKERFILE.read_text().replace("\\\n", "")
    (arguments,) = re.findall(r"^HEALTHCHECK .* CMD (\[.*\])$", text, re.MULTILINE)
    command: list[str] = json.loads(arguments)
    return command
