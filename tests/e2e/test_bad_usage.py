"""Command lines and configurations that cannot be meant: one error, one hint, exit code 2, and nothing is touched."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from harness.cli import CommandLine

if TYPE_CHECKING:
    from harness.place import Place

USAGE, SOURCE_UNUSABLE = 2, 13


def test_wrong_command_line_is_explained(place: Place) -> None:
    """What is wrong is named, and the hint has what would be right."""
    (place.home / "copy").mkdir()
    shutil.copy(place.database, place.home / "copy/app.db")
    shutil.copy(place.database, place.home / "copy/APP.db")
    expected = [
        ("nwo", "nwo", "now"),
        ("now app.db --tga x", "--tga", "--tag"),
        ("now app.db --tag 1.0", "1.0", "a letter"),
        ("now app.db --tag latest", "latest", "not `latest`"),
        ("now ap", "ap", "path"),
        ("now", "no database", "backupd now app.db"),
        ("now app.db copy/app.db", "two databases with one name", "name"),
        ("now app.db copy/APP.db", "two databases with one name", "name"),
        ("now app.db --store ftp://host/x", "ftp:", "s3://"),
        ("list --store s3://key:hunter2@bucket", "credentials", "secret_access_key"),
        ("list --config nosuch.toml", "nosuch.toml", ""),
        ("restore latest", "where to restore app to", "--to FILE"),
    ]
    results = place.backupd.refusals([(line.split(), USAGE, [error]) for line, error, _ in expected])
    for result, (_, _, hint) in zip(results, expected, strict=True):
        assert hint in result.reported("hint")[0]
        assert "hunter2" not in result.stderr


def test_wrong_configuration_is_explained(place: Place) -> None:
    """The file, the key and the likely spelling are named; two databases never share a name."""
    for directory in ("a", "b"):
        (place.home / directory).mkdir()
        shutil.copy(place.database, place.home / directory / "app.db")
    expected = [
        ("[[databases]\n", "is not valid TOML", ""),
        ("[captur]\nlock_timeout = '1s'\n", "captur", "capture"),
        ("[capture]\nlock_timout = '1s'\n", "capture.lock_timout", "lock_timeout"),
        ("[capture]\nlock_timeout = 'soon'\n", "capture.lock_timeout", ""),
        ("[[databases]]\npath = 'a/app.db'\n[[databases]]\npath = 'b/app.db'\n", "'app'", "name"),
        ("[[databases]]\npath = 'x/*.db'\n", f"{place.home}/x/*.db", "path"),
    ]
    for number, (content, _, _) in enumerate(expected):
        (place.home / f"{number}.toml").write_text(content)
    codes = [USAGE] * (len(expected) - 1) + [SOURCE_UNUSABLE]
    results = place.backupd.refusals(
        [
            (["now", "--config", f"{number}.toml"], code, [error])
            for number, (code, (_, error, _)) in enumerate(zip(codes, expected, strict=True))
        ]
    )
    for result, (_, _, hint) in zip(results, expected, strict=True):
        assert hint in result.reported("hint")[0]


def test_wrong_variable_is_explained(place: Place) -> None:
    """A secret twice, from a file that is not there, and a name that is nearly one of ours."""
    bucket = {"BACKUPD_STORES__0__URL": "s3://bucket", "BACKUPD_STORES__0__ACCESS_KEY_ID": "id"}
    secret = "BACKUPD_STORES__0__SECRET_ACCESS_KEY"
    (place.home / "secret").write_text("from a file")
    for wrong, names in (
        ({secret: "hunter2", f"{secret}_FILE": "secret"}, [secret, f"{secret}_FILE"]),
        ({f"{secret}_FILE": "/nowhere/secret"}, ["/nowhere/secret"]),
        ({"BACKUPD_CAPTURE__LOCK_TIMOUT": "1s"}, ["BACKUPD_CAPTURE__LOCK_TIMOUT"]),
    ):
        result = CommandLine(place.home, **bucket, **wrong).refusal("list", code=USAGE, names=names)
        assert "hunter2" not in result.stderr
