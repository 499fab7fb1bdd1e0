"""The environment of Alembic: it connects migrations to the service's database."""

from __future__ import annotations

from alembic import context
from flask import current_app

_database = current_app.extensions["migrate"].db

with _database.engine.connect() as connection:
    context.configure(connection=connection, target_metadata=_database.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
