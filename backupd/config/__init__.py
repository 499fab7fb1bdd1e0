"""What the user wants kept, where, and how: a TOML file and the environment, checked before anything is touched.

`load` gives `Settings`; every failure is a `UsageError`. config.example.toml explains each key.
"""

from backupd.config.databases import (
    Database,
    DatabaseSettings,
    check_database_name,
    database_from_path,
    find_databases,
    unmatched_patterns,
)
from backupd.config.loading import load
from backupd.config.retention import RetentionSettings
from backupd.config.settings import CaptureSettings, PackSettings, Settings
from backupd.config.stores import StoreSettings, store_from_url
from backupd.config.values import InvalidValueError, format_duration, format_size, parse_duration, parse_size

__all__ = [
    "CaptureSettings",
    "Database",
    "DatabaseSettings",
    "InvalidValueError",
    "PackSettings",
    "RetentionSettings",
    "Settings",
    "StoreSettings",
    "check_database_name",
    "database_from_path",
    "find_databases",
    "format_duration",
    "format_size",
    "load",
    "parse_duration",
    "parse_size",
    "store_from_url",
    "unmatched_patterns",
]
