"""SQLite backups that you install once, forget for years, and are saved by."""

__version__ = "0.1.0"
