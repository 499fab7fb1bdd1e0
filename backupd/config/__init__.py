"""What the user wants kept, where, and how: a TOML file and the environment, checked before anything is touched.

`load` gives `Settings`; every failure is a `UsageError`. config.example.toml explains each key.
"""

from backupd.config.databases import (
    Database,
    DatabaseSettings,
    check_database_name,
    database_from_path,
    missing_file,
    nothing_found,
    unmatched_patterns,
)
from backupd.config.discovery import entries_by_name, find_databases, look_for_databases
from backupd.config.encryption import EncryptionSettings
from backupd.config.loading import load
from backupd.config.retention import RetentionSettings
from backupd.config.schedule import ScheduleSettings
from backupd.config.settings import CaptureSettings, PackSettings, Settings
from backupd.config.stores import StoreSettings, store_from_url
from backupd.config.unattended import (
    DaemonSettings,
    HealthSettings,
    HeartbeatSettings,
    HttpSettings,
    NotificationSettings,
)
from backupd.config.values import InvalidValueError, format_duration, format_size, parse_duration, parse_size

__all__ = [
    "CaptureSettings",
    "DaemonSettings",
    "Database",
    "DatabaseSettings",
    "EncryptionSettings",
    "HealthSettings",
    "HeartbeatSettings",
    "HttpSettings",
    "InvalidValueError",
    "NotificationSettings",
    "PackSettings",
    "RetentionSettings",
    "ScheduleSettings",
    "Settings",
    "StoreSettings",
    "check_database_name",
    "database_from_path",
    "entries_by_name",
    "find_databases",
    "format_duration",
    "format_size",
    "load",
    "look_for_databases",
    "missing_file",
    "nothing_found",
    "parse_duration",
    "parse_size",
    "store_from_url",
    "unmatched_patterns",
]
