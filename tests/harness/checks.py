"""Contexts in which tests run checks."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from backupd.config import Settings
from backupd.verify import CheckContext


def check_context(**changes: Any) -> CheckContext:
    """A context of this moment, with the default limit for SQLite."""
    settings: dict[str, Any] = {"now": datetime.now(UTC), "examination_limit": Settings().capture.deadline}
    return CheckContext(**(settings | changes))
