"""Unattended backups of SQLite databases, with verified restores."""

__version__ = "0.1.0"
