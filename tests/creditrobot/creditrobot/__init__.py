"""A small service that sells credit reports: users order them, each order is a report and a payment."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from flask import Flask, request
from flask_migrate import Migrate
from sqlalchemy import Engine, event, func, select

from creditrobot.models import Payment, Report, User, db

if TYPE_CHECKING:
    import sqlite3

_PRICE_CENTS = 1490


@event.listens_for(Engine, "connect")
def _prepare(connection: sqlite3.Connection, _: object) -> None:
    connection.execute(f"PRAGMA journal_mode = {os.environ.get('CREDITROBOT_JOURNAL_MODE', 'wal')}")
    connection.execute("PRAGMA foreign_keys = on")


def create_app() -> Flask:
    """Make the application, with its database in the instance directory."""
    app = Flask(__name__, instance_path=os.path.abspath("instance"))  # noqa: PTH100  (as Flask's manual has it)
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///creditrobot.db"
    db.init_app(app)
    Migrate(app, db)

    @app.post("/orders")
    def order() -> tuple[dict[str, int], int]:
        email = request.get_json()["email"]
        user = db.session.scalar(select(User).filter_by(email=email)) or User(email=email)
        report = Report(user=user, score=300 + len(email) * 7 % 550, body={"for": email, "remarks": "none " * 40})
        payment = Payment(user=user, report=report, amount_cents=_PRICE_CENTS)
        user.balance_cents = (user.balance_cents or 0) + _PRICE_CENTS
        db.session.add(payment)
        db.session.commit()
        return {"payment": payment.id}, 201

    @app.get("/orders")
    def orders() -> dict[str, int | bool]:
        """What there is, and whether it fits together: it does in every committed state."""
        payments, paid_cents = db.session.execute(
            select(func.count(), func.coalesce(func.sum(Payment.amount_cents), 0)).select_from(Payment)
        ).one()
        reports = db.session.scalar(select(func.count()).select_from(Report))
        balance_cents = db.session.scalar(select(func.coalesce(func.sum(User.balance_cents), 0)))
        return {"payments": payments, "is_balanced": reports == payments and balance_cents == paid_cents}

    @app.get("/healthz")
    def healthz() -> dict[str, bool]:
        db.session.execute(select(1))
        return {"ok": True}

    return app
