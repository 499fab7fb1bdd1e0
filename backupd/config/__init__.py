"""The configuration: databases, stores and policies from a TOML file and BACKUPD_... variables, checked before use.

`load` returns `Settings`; every failure is a `UsageError`. config.example.toml explains each key.
"""

from backupd.config.databases import (
    Database,
    DatabaseSettings,
    check_database_name,
    database_from_path,
    missing_file_error,
    no_match_error,
)
from backupd.config.discovery import discover_databases
from backupd.config.loading import load
from backupd.config.policies import RetentionSettings, ScheduleSettings
from backupd.config.settings import (
    CaptureSettings,
    DaemonSettings,
    FollowSettings,
    HealthSettings,
    HeartbeatSettings,
    HttpSettings,
    NotificationSettings,
    PackSettings,
    Settings,
)
from backupd.config.stores import EncryptionSettings, StoreSettings, store_from_url
from backupd.config.values import InvalidValueError, format_duration, format_size, parse_duration, parse_size

__all__ = [
    "CaptureSettings",
    "DaemonSettings",
    "Database",
    "DatabaseSettings",
    "EncryptionSettings",
    "FollowSettings",
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
    "discover_databases",
    "format_duration",
    "format_size",
    "load",
    "missing_file_error",
    "no_match_error",
    "parse_duration",
    "parse_size",
    "store_from_url",
]
