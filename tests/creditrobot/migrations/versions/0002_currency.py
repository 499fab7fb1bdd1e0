"""Payments in other currencies. CREDITROBOT_FAIL_MIGRATION=1 makes it fail half-way, as migrations do."""

from __future__ import annotations

import os

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column, then fill it; SQLite has committed the first when the second fails."""
    op.add_column("payments", sa.Column("currency", sa.String(3), nullable=False, server_default="???"))
    if os.environ.get("CREDITROBOT_FAIL_MIGRATION"):
        op.execute("UPDATE payments SET currency = (SELECT currency FROM prices WHERE prices.id = payments.id)")
    op.execute("UPDATE payments SET currency = 'EUR'")


def downgrade() -> None:
    """Drop it."""
    op.drop_column("payments", "currency")
