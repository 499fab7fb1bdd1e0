from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tempfile
import tomllib
import traceback
from datetime import timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from harness.cli import CommandLine
from harness.confinement import ANOTHER_UID, another_user, shared_directory
from harness.databases import entries_by_name, find_databases
from hypothesis import given
from hypothesis import strategies as st

from backupd.config import (
    Database,
    DatabaseSettings,
    InvalidValueError,
    RetentionSettings,
    Settings,
    StoreSettings,
    check_database_name,
    database_from_path,
    discover_databases,
    format_duration,
    format_size,
    load,
    parse_duration,
    parse_size,
    store_from_url,
)
from backupd.config.loading import _usual_places
from backupd.config.problems import variable_name
from backupd.config.settings import TABLES, FollowSettings, default_state_dir, tables_in
from backupd.config.tables import REQUIRED, InvalidTableError
from backupd.errors import ExitCode, UsageError

EXAMPLE = Path(__file__).parent.parent / "config.example.toml"
MINUTE = timedelta(minutes=1)
_LET_IN = (
    f"let uid {ANOTHER_UID} read it; or, if backupd was started as root, restart it: "
    f"it reads its files before it changes to uid {ANOTHER_UID}"
)


@pytest.fixture
def config_file(tmp_path):
    """The path of a test's configuration."""
    return tmp_path / "config.toml"


@pytest.fixture
def load_text(config_file):
    """Load a configuration from its text and variables."""

    def load_text(text: str = "", **environ: str) -> Settings:
        config_file.write_text(text, encoding="utf-8")
        return load(config_file, environ)

    return load_text


@pytest.fixture
def refusal(load_text):
    """What `load` says, message and hint in one, when it refuses a configuration."""

    def refusal(text: str = "", **environ: str) -> str:
        with pytest.raises(UsageError) as caught:
            load_text(text, **environ)
        assert caught.value.exit_code == ExitCode.USAGE
        reason = f"{caught.value.message} | {caught.value.hint}"
        assert "\n" not in reason
        return reason

    return refusal


def touch(*paths: Path) -> None:
    """Make empty files with their directories."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


# Values


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("500ms", timedelta(milliseconds=500)),
        ("30s", timedelta(seconds=30)),
        ("3m", 3 * MINUTE),
        ("1h30m", 90 * MINUTE),
        ("2d", timedelta(days=2)),
        ("1w", timedelta(weeks=1)),
        ("0s", timedelta(0)),
        (" 5m ", 5 * MINUTE),
    ],
)
def test_durations_are_read_as_people_write_them(text, duration):
    """A number with a unit, or several in falling order, is a duration."""
    assert parse_duration(text) == duration


@pytest.mark.parametrize("text", ["", "30", "s", "-1s", "1.5h", "1m1h", "1s1s", "1 h", "1y", "1M", "٣s", "9999999999s"])
def test_what_is_no_duration_is_refused_with_an_example(text):
    """Anything else, above all a number without a unit, is refused and shown how it is written."""
    with pytest.raises(InvalidValueError, match="is not a duration") as caught:
        parse_duration(text)
    assert "1h30m" in caught.value.hint


@pytest.mark.parametrize(
    ("values", "is_valid"),
    [({"interval": "5m"}, False), ({"interval": "10s", "max_age": "10s"}, False), ({"interval": "4m59s"}, True)],
)
def test_a_recovery_point_may_be_older_than_the_interval(values, is_valid):
    """Otherwise an alarm would be on all the time."""
    if is_valid:
        assert FollowSettings.read(values).max_age == timedelta(minutes=5)
        return
    with pytest.raises(InvalidTableError, match="is not longer than interval"):
        FollowSettings.read(values)


def test_a_duration_beyond_the_calendar_is_refused():
    """A duration that no timedelta can hold is an error, not a crash."""
    with pytest.raises(InvalidValueError, match="too long"):
        parse_duration("999999999w")


@pytest.mark.parametrize(
    ("table", "key", "longest"),
    [
        ("retention", "grace", "365000d"),
        ("health", "grace", "365000d"),
        ("capture", "max_lock", "24d"),
        ("capture", "deadline", "24d"),
        ("daemon", "stop_timeout", "24d"),
        ("daemon", "retry_after", "24d"),
    ],
)
def test_a_duration_that_no_clock_can_count_is_refused_by_its_key(table, key, longest):
    """Added to a time it would leave the calendar, and the system could not wait for it."""
    Settings.read({"state_dir": "/state", table: {key: longest}})
    with pytest.raises(InvalidTableError, match=f"must be at most {longest}") as refused:
        Settings.read({"state_dir": "/state", table: {key: f"{longest}1s"}})
    assert [problem.location for problem in refused.value.problems] == [(table, key)]


@given(st.integers(min_value=0, max_value=10**15))
def test_a_printed_duration_reads_back(milliseconds):
    """Printing and reading a duration gives the same duration."""
    duration = timedelta(milliseconds=milliseconds)
    assert parse_duration(format_duration(duration)) == duration


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("256MB", 256_000_000),
        ("256MiB", 268_435_456),
        ("256 mb", 256_000_000),
        ("1.5GB", 1_500_000_000),
        ("1kB", 1000),
        ("1KiB", 1024),
        ("2TB", 2 * 10**12),
        ("7B", 7),
        ("268435456", 268_435_456),
        ("0", 0),
    ],
)
def test_sizes_are_decimal_or_binary_by_their_unit(text, size_bytes):
    """MB is a million bytes, MiB is 2^20, and a bare number is in bytes."""
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "256M", "256Mbit", "-1MB", "1.5", "0.5B", "MB", "1e3MB"])
def test_what_is_no_size_is_refused_with_an_example(text):
    """A unit that tools disagree about, or half a byte, is refused and shown how it is written."""
    with pytest.raises(InvalidValueError) as caught:
        parse_size(text)
    assert "256MiB" in caught.value.hint


@given(st.integers(min_value=0, max_value=10**18))
def test_a_printed_size_reads_back(size_bytes):
    """Printing and reading a size gives the same size."""
    assert parse_size(format_size(size_bytes)) == size_bytes


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(256_000_000, "256MB"), (2**28, "256MiB"), (0, "0B"), (1001, "1001B")]
)
def test_a_size_prints_in_its_largest_exact_unit(size_bytes, text):
    """A size is printed as a person would have written it."""
    assert format_size(size_bytes) == text


# Where the configuration comes from


def test_without_a_file_everything_has_its_default(tmp_path, monkeypatch):
    """Without a file and variables nothing is listed, and ./backups is the store to fall back to."""
    if Path("/etc/backupd/config.toml").exists():
        pytest.skip("this machine has a configuration of its own in /etc/backupd")
    monkeypatch.chdir(tmp_path)
    settings = load(None, {"HOME": str(tmp_path)})
    assert settings.source is None
    assert settings.databases == settings.stores == ()
    assert [store.directory for store in settings.stores_or_default] == [tmp_path / "backups"]


def test_configured_stores_replace_the_default_one(load_text):
    """A configured store replaces ./backups."""
    settings = load_text('[[stores]]\nurl = "/srv/backups"')
    assert settings.stores_or_default == settings.stores


def test_the_first_of_the_usual_places_is_read(tmp_path, monkeypatch):
    """$BACKUPD_CONFIG comes before ./backupd.toml, that before $XDG_CONFIG_HOME, and that before ~/.config."""
    here, xdg, home = tmp_path / "here", tmp_path / "xdg", tmp_path / "home"
    places = [
        tmp_path / "named.toml",
        here / "backupd.toml",
        xdg / "backupd/config.toml",
        home / ".config/backupd/config.toml",
    ]
    touch(*places)
    monkeypatch.chdir(here)
    environ = {"HOME": str(home), "XDG_CONFIG_HOME": str(xdg), "BACKUPD_CONFIG": str(places[0])}
    found = []
    for variable in ["BACKUPD_CONFIG", "here", "XDG_CONFIG_HOME", "home"]:
        found.append(load(None, environ).source)
        environ.pop(variable, None)
        found[-1].unlink()
    assert found == places


def test_the_last_of_the_usual_places_is_the_systems(tmp_path):
    """/etc/backupd/config.toml is looked at last, and an XDG variable with a relative path is ignored."""
    assert list(_usual_places({"HOME": str(tmp_path), "XDG_CONFIG_HOME": "relative"}))[1:] == [
        tmp_path / ".config/backupd/config.toml",
        Path("/etc/backupd/config.toml"),
    ]


def test_an_empty_backupd_config_counts_as_not_set(tmp_path, monkeypatch):
    """BACKUPD_CONFIG= is what Compose passes for a variable that is not set."""
    touch(tmp_path / "backupd.toml")
    monkeypatch.chdir(tmp_path)
    assert load(None, {"BACKUPD_CONFIG": ""}).source == tmp_path / "backupd.toml"


def test_the_state_directory_follows_the_user(tmp_path):
    """Root keeps state in /var/lib, everyone else in $XDG_STATE_HOME or ~/.local/state."""
    home = {"HOME": "/home/ada"}
    assert default_state_dir(home, is_root=True) == Path("/var/lib/backupd")
    assert default_state_dir(home, is_root=False) == Path("/home/ada/.local/state/backupd")
    assert default_state_dir(home | {"XDG_STATE_HOME": "/x"}, is_root=False) == Path("/x/backupd")
    assert default_state_dir(home | {"XDG_STATE_HOME": "x"}, is_root=False) == Path("/home/ada/.local/state/backupd")


def test_without_a_home_directory_the_state_directory_has_to_be_set():
    """A user that the system does not know, as in a container, never gets a directory called ~."""
    with pytest.raises(UsageError, match="no home directory") as caught:
        default_state_dir({"HOME": "relative"}, is_root=False)
    assert "BACKUPD_STATE_DIR" in caught.value.hint


def test_a_named_file_that_is_missing_is_an_error(tmp_path):
    """A file that was asked for, by argument or variable, has to be there."""
    missing = tmp_path / "missing.toml"
    with pytest.raises(UsageError, match=f"no such configuration file: {missing}"):
        load(missing, {})
    with pytest.raises(UsageError, match=f"no such configuration file: {missing}"):
        load(None, {"BACKUPD_CONFIG": str(missing)})


def test_a_directory_in_place_of_the_file_is_explained(tmp_path, monkeypatch):
    """Docker mounts a directory when the file on the host is missing: that is said, and not passed over."""
    (tmp_path / "backupd.toml").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="is a directory") as caught:
        load(None, {})
    assert "Docker" in caught.value.hint


def test_a_broken_link_in_a_usual_place_is_not_passed_over(tmp_path, monkeypatch):
    """A link to a configuration that no longer exists must not turn into all defaults."""
    (tmp_path / "backupd.toml").symlink_to("gone.toml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no such configuration file"):
        load(None, {})


def test_an_unreadable_file_is_an_error(config_file):
    """A file that cannot be opened is named, with the system's reason."""
    config_file.symlink_to(config_file)
    with pytest.raises(UsageError, match=f"cannot read {config_file}: Too many levels"):
        load(config_file, {})


def test_a_file_that_only_root_may_read_says_what_to_do():
    """A daemon that has become the owner of the database reads its file again on SIGHUP, and is not root any more."""
    with another_user() as runner, shared_directory() as home:
        file = home / "config.toml"
        file.touch(mode=0o600)
        said = CommandLine(home, runner=runner, BACKUPD_CONFIG=str(file)).run("list", code=ExitCode.USAGE)
        assert said.reported("error") == [f"cannot read {file}: Permission denied"]
        assert said.reported("hint") == [_LET_IN]


def test_a_secret_that_only_root_may_read_says_what_to_do():
    """A secret file that only root may read is an error whose hint says how to let this user read it."""
    with another_user() as runner, shared_directory() as home:
        file = home / "secret"
        file.touch(mode=0o600)
        place = CommandLine(home, runner=runner, BACKUPD_HTTP__TOKEN_FILE=str(file))
        said = place.run("list", code=ExitCode.USAGE)
        assert said.reported("error") == [f"BACKUPD_HTTP__TOKEN_FILE: {file} cannot be read: Permission denied"]
        assert said.reported("hint") == [_LET_IN]


def test_a_file_that_is_not_utf_8_is_an_error(config_file):
    """Text in another encoding is refused with the place of the first wrong byte."""
    config_file.write_bytes('# größer\nstate_dir = "/x"'.encode("latin-1"))
    with pytest.raises(UsageError, match=r"is not UTF-8 text \(byte 4\)"):
        load(config_file, {})


def test_a_byte_order_mark_is_accepted(config_file):
    """A file saved by an editor that begins it with a byte order mark loads."""
    config_file.write_text('state_dir = "/x"', encoding="utf-8-sig")
    assert load(config_file, {}).state_dir == Path("/x")


def test_a_pipe_is_read_like_a_file():
    """A configuration that another program prints is read, not silently taken for no configuration."""
    code = "from pathlib import Path; from backupd.config import load; print(load(Path('/dev/stdin'), {}).state_dir)"
    ran = subprocess.run(
        [sys.executable, "-c", code], input='state_dir = "/x"', text=True, capture_output=True, check=True
    )
    assert ran.stdout == "/x\n"


def test_invalid_toml_is_an_error_with_its_line(refusal, config_file):
    """A syntax error names the file and the line."""
    reason = refusal('state_dir = "/x"\n[capture\n')
    assert f"{config_file} is not valid TOML" in reason
    assert "at line 2" in reason


def test_relative_paths_start_at_the_file(config_file, load_text, tmp_path):
    """Relative paths start at the configuration file, whatever the current directory is."""
    settings = load_text(
        'state_dir = "state"\n[[databases]]\npath = "app.db"\n[[databases]]\npath = "tenants/*/app.db"\n'
        '[[stores]]\nurl = "backups"\n[[stores]]\nurl = "s3://bucket"\nca_bundle = "ca.pem"'
    )
    assert settings.source == config_file
    assert settings.state_dir == tmp_path / "state"
    assert [entry.path for entry in settings.databases] == [f"{tmp_path}/app.db", f"{tmp_path}/tenants/*/app.db"]
    assert settings.stores[0].directory == tmp_path / "backups"
    assert settings.stores[1].ca_bundle == tmp_path / "ca.pem"


def test_relative_paths_in_variables_start_at_the_current_directory(load_text, tmp_path, monkeypatch):
    """A variable belongs to the caller, and so do its relative paths: they start at the current directory."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    settings = load_text('state_dir = "in-file"', BACKUPD_STATE_DIR="in-variable", BACKUPD_STORES__0__URL="b")
    assert settings.state_dir == tmp_path / "elsewhere/in-variable"
    assert settings.stores[0].directory == tmp_path / "elsewhere/b"


def test_a_configuration_in_a_directory_with_wildcards_in_its_name_works(tmp_path):
    """The directory of the file is never taken for a part of a pattern."""
    directory = tmp_path / "[old] *"
    touch(directory / "app.db", directory / "tenants/acme.db")
    file = directory / "c.toml"
    file.write_text('[[databases]]\npath = "app.db"\n[[databases]]\npath = "tenants/*.db"')
    assert find_databases(load(file, {}).databases) == (
        Database("app", directory / "app.db"),
        Database("acme", directory / "tenants/acme.db"),
    )


def test_a_tilde_is_the_home_directory(load_text, monkeypatch):
    """~ at the start of a path never makes a directory called ~."""
    monkeypatch.setenv("HOME", "/home/ada")
    settings = load_text('state_dir = "~/state"\n[[stores]]\nurl = "~/backups"\n[[databases]]\npath = "~/app.db"')
    assert settings.state_dir == Path("/home/ada/state")
    assert settings.stores[0].directory == Path("/home/ada/backups")
    assert settings.databases[0].path == "/home/ada/app.db"


# Keys and values of the file


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("databses = []", "unknown key 'databses' in {file} | did you mean 'databases'?"),
        ("[capture]\nmaxlock = '3s'", "unknown key 'capture.maxlock' in {file} | did you mean 'max_lock'?"),
        (
            '[[stores]]\nurl = "s3://abc"\nregoin = "x"',
            "unknown key 'stores[0].regoin' in {file} | did you mean 'region'?",
        ),
        ("max_lock = '3s'", "unknown key 'max_lock' in {file} | 'max_lock' belongs under [capture]"),
        ("region = 'x'", "unknown key 'region' in {file} | 'region' belongs under [[stores]]"),
        (
            "[[databases]]\npath = '/a.db'\nstate_dir = '/x'",
            "unknown key 'databases[0].state_dir' in {file} | 'state_dir' belongs above the first line in brackets",
        ),
        (
            "[[databases]]\npath = '/a.db'\nzzz = 1",
            "unknown key 'databases[0].zzz' in {file} | known here: path, name, retention, schedule",
        ),
        ("source = '/x'", "unknown key 'source' in {file} | did you mean 'stores'?"),
        ("[retention]\ndayly = 3", "unknown key 'retention.dayly' in {file} | did you mean 'daily'?"),
        (
            "[[databases]]\npath = '/a.db'\nretention = {dayly = 3}",
            "unknown key 'databases[0].retention.dayly' in {file} | did you mean 'daily'?",
        ),
        (
            "[[stores]]\nurl = '/a'\nmonthly = 3",
            # Where a table of this entry could have it, and where one of the file could.
            "unknown key 'stores[0].monthly' in {file} | 'monthly' belongs under [retention] or [stores.retention]",
        ),
        ("[packs]\nmonthly = 3", "unknown key 'packs.monthly' in {file} | 'monthly' belongs under [retention]"),
    ],
)
def test_an_unknown_key_is_refused_with_the_likely_spelling(refusal, config_file, text, reason):
    """A typo at any depth is refused, with the key that was probably meant or the table where it belongs."""
    assert refusal(text) == reason.format(file=config_file)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("state_dir = 5", "state_dir in {file}: must be a path in quotes"),
        ("state_dir = ''", "state_dir in {file}: must not be empty"),
        (r'state_dir = "a\u0000b"', "state_dir in {file}: a path cannot contain a NUL character"),
        ("[capture]\nmax_lock = '3x'", "capture.max_lock in {file}: '3x' is not a duration | write it like"),
        ("[capture]\nmax_lock = 3", "capture.max_lock in {file}: must be a duration with a unit"),
        ("[capture]\nmax_lock = '0s'", "capture.max_lock in {file}: must be longer than 0s"),
        ("[capture]\nmax_wal_growth = 1.5", "capture.max_wal_growth in {file}: must be a size"),
        ("[capture]\nmax_wal_growth = true", "capture.max_wal_growth in {file}: must be a size"),
        ("[packs]\nspool_limit = 256", "packs.spool_limit in {file}: 256B is less than 1MB | a number without a unit"),
        ("[packs]\ncompression_level = 0", "packs.compression_level in {file}: must be at least 1"),
        ("[packs]\ncompression_level = 20", "packs.compression_level in {file}: must be at most 19"),
        ("[packs]\nupload_threads = true", "packs.upload_threads in {file}: must be a whole number"),
        ("[packs]\nupload_threads = 2.0", "packs.upload_threads in {file}: must be a whole number"),
        ("[packs]\nupload_threads = 'x'", "packs.upload_threads in {file}: must be a whole number"),
        ("capture = 3", "capture in {file}: must be a table, headed [capture]"),
        ("[stores]\nurl = '/x'", "stores in {file}: must be a table, headed [[stores]]"),
        ("stores = ['/x']", "stores[0] in {file}: must be a table, headed [[stores]]"),
        ("[[databases]]\nname = 'x'", "databases[0] in {file} has no 'path'"),
        ("[[stores]]\nurl = 5", "stores[0].url in {file}: must be a text in quotes"),
        ("[[stores]]\nurl = 's3://abc'\nregion = ''", "stores[0].region in {file}: must not be empty"),
        ("[[stores]]\nurl = 's3://abc'\nmax_attempts = 0", "stores[0].max_attempts in {file}: must be at least 1"),
        (
            "[[stores]]\nurl = 's3://abc'\naddressing_style = 'x'",
            "stores[0].addressing_style in {file}: must be 'auto', 'path' or 'virtual'",
        ),
        ("[retention]\ndaily = -1", "retention.daily in {file}: must be at least 0"),
        ("[retention]\ndaily = true", "retention.daily in {file}: must be a whole number"),
        ("[retention]\nafter_snapshot = 'x'", "retention.after_snapshot in {file}: must be true or false"),
        ("[retention]\ngrace = '30m'", "retention.grace in {file}: 30m is less than 1h | m stands for minutes; write"),
        ("[retention]\nwithin = '6m'", "retention.within in {file}: 6m is less than 1h | m stands for minutes; write"),
        ("[retention]\ntagged = '0s'", "retention.tagged in {file}: must be longer than 0s"),
        (
            "[retention]\ntime_zone = 'Europe/Berln'",
            "retention.time_zone in {file}: 'Europe/Berln' is not a time zone | did you mean Europe/Berlin?",
        ),
        (
            "[retention]\ntime_zone = '+01:00'",
            "retention.time_zone in {file}: '+01:00' is not a time zone | write it like Europe/Berlin",
        ),
        ("[retention]\ntime_zone = '/etc/passwd'", "retention.time_zone in {file}: '/etc/passwd' is not a time zone"),
        ("[retention]\ntime_zone = ''", "retention.time_zone in {file}: '' is not a time zone"),
        ("retention = 3", "retention in {file}: must be a table, headed [retention]"),
        (
            "[[stores]]\nurl = '/x'\nretention = 3",
            "stores[0].retention in {file}: must be a table, headed [stores.retention]",
        ),
        (
            "[[databases]]\npath = '/a.db'\n[databases.retention]\ndaily = 'x'",
            "databases[0].retention.daily in {file}: must be a whole number",
        ),
    ],
)
def test_a_wrong_value_names_the_file_the_key_and_the_rule(refusal, config_file, text, reason):
    """A value that breaks a rule is refused in one line that says where it stands and what would be right."""
    assert refusal(text).startswith(reason.format(file=config_file))


@pytest.mark.parametrize("level", [1, 19])
def test_the_compression_level_goes_from_1_to_19(load_text, level):
    """The compression levels 1 and 19 are accepted."""
    assert load_text(f"[packs]\ncompression_level = {level}").packs.compression_level == level


def test_values_of_the_file_arrive(load_text):
    """Durations and sizes become timedeltas and bytes; what is not in the file keeps its default."""
    settings = load_text('[capture]\nmax_lock = "1500ms"\nmax_wal_growth = "1GiB"\n[packs]\nspool_limit = 2000000')
    assert settings.capture.max_lock == timedelta(seconds=1.5)
    assert settings.capture.max_wal_growth == 2**30
    assert settings.packs.spool_limit == 2_000_000
    assert settings.capture.deadline == timedelta(hours=1)


def test_every_problem_is_reported_at_once(refusal):
    """The first problem is the message, and no other one waits for the next attempt."""
    reason = refusal("databses = 1\n[capture]\nmax_lock = '3x'\n[packs]\nupload_threads = 0")
    for part in ["'databses'", "did you mean 'databases'", "capture.max_lock", "1h30m", "packs.upload_threads"]:
        assert part in reason


def test_settings_can_not_be_changed(load_text):
    """Settings are values: nothing that holds them can be surprised."""
    settings = load_text('[[stores]]\nurl = "/x"')
    with pytest.raises(AttributeError):
        settings.state_dir = Path("/y")
    with pytest.raises(AttributeError):
        settings.stores[0].url = "/y"


# Variables


def test_variables_beat_the_file(load_text):
    """A variable overrides its key, and leaves the other keys of the same table and entry alone."""
    settings = load_text(
        '[capture]\nmax_lock = "9s"\ndeadline = "9h"\n'
        '[[stores]]\nurl = "s3://first/x"\nregion = "a"\n[[stores]]\nurl = "/second"',
        BACKUPD_CAPTURE__MAX_LOCK="5s",
        BACKUPD_STORES__0__REGION="b",
        BACKUPD_PACKS__UPLOAD_THREADS="8",
        BACKUPD_PACKS__SPOOL_LIMIT="1GiB",
    )
    assert settings.capture.max_lock == timedelta(seconds=5)
    assert settings.capture.deadline == timedelta(hours=9)
    assert [(store.url, store.region) for store in settings.stores] == [("s3://first/x", "b"), ("/second", None)]
    assert settings.packs.upload_threads == 8
    assert settings.packs.spool_limit == 2**30


def test_variables_add_the_next_entries(load_text):
    """A position after the file's last entry makes a new one, ten and more in the order of numbers."""
    environ = {f"BACKUPD_DATABASES__{position}__PATH": f"/{position}.db" for position in range(11, 0, -1)}
    settings = load_text('[[databases]]\npath = "/0.db"', **environ)
    assert [entry.path for entry in settings.databases] == [f"/{position}.db" for position in range(12)]


def test_variables_alone_are_a_configuration(tmp_path):
    """A container needs no file."""
    environ = {
        "BACKUPD_CONFIG": "/dev/null",
        "BACKUPD_STATE_DIR": "/state",
        "BACKUPD_DATABASES__0__PATH": "/app.db",
        "BACKUPD_DATABASES__0__NAME": "shop",
        "BACKUPD_STORES__0__URL": "s3://bucket/x",
        "BACKUPD_STORES__0__ENDPOINT_URL": "https://s3.example.com/",
    }
    settings = load(None, environ)
    assert settings.state_dir == Path("/state")
    assert find_databases(settings.databases) == (Database("shop", Path("/app.db")),)
    assert settings.stores == (StoreSettings(url="s3://bucket/x", endpoint_url="https://s3.example.com"),)


def test_every_key_has_a_variable(load_text):
    """Every key has a variable, which is not refused as unknown."""

    def variables(table, *location):
        for key, field in table.keys.items():
            position = [0] if field.default == () else []
            if key in tables_in(table):
                yield from variables(tables_in(table)[key], *location, key, *position)
            else:
                yield variable_name(*location, key)

    found = list(variables(Settings))
    assert {"BACKUPD_STATE_DIR", "BACKUPD_STORES__0__RETENTION__DAILY", "BACKUPD_RETENTION__DAILY"} <= set(found)
    for name in found:
        with pytest.raises(UsageError) as caught:
            load_text(**{name: "\0"})
        assert name.partition("__")[0] in caught.value.message
        assert "unknown" not in caught.value.message


def test_a_gap_in_positions_is_an_error(refusal):
    """A position that skips one would lose an entry silently somewhere else."""
    reason = refusal('[[stores]]\nurl = "/a"', BACKUPD_STORES__2__URL="/c")
    assert (
        reason == "BACKUPD_STORES__2__URL leaves a gap | positions start at 0, and the next is BACKUPD_STORES__1__URL"
    )
    reason = refusal(BACKUPD_STORES__1__RETENTION__DAILY="3")
    assert reason.startswith("BACKUPD_STORES__1__RETENTION__DAILY leaves a gap")


def test_empty_variables_count_as_not_set(load_text):
    """Compose turns an unset variable into an empty one: it changes nothing, whatever its name is."""
    environ = {
        "BACKUPD_STATE_DIR": "",
        "BACKUPD_STORES__5__URL": "",
        "BACKUPD_TYPO": "",
        "BACKUPD_CAPTURE__MAX_LOCK": "",
    }
    assert load_text('state_dir = "/x"', **environ) == load_text('state_dir = "/x"')


@pytest.mark.parametrize(
    ("variable", "likely"),
    [
        ("BACKUPD_STATEDIR", "BACKUPD_STATE_DIR"),
        ("BACKUPD_STORE__0__URL", "BACKUPD_STORES__0__URL"),
        ("BACKUPD_STORES__3__ULR", "BACKUPD_STORES__3__URL"),
        ("BACKUPD_STORES_0_URL", "BACKUPD_STORES__0__URL"),
        ("BACKUPD_STORES__URL", "BACKUPD_STORES__0__URL"),
        ("BACKUPD_STORES__00__URL", "BACKUPD_STORES__0__URL"),
        ("BACKUPD_CAPTURE__MAX_LOCKS", "BACKUPD_CAPTURE__MAX_LOCK"),
        ("BACKUPD_STORES__0__SECRET_ACCESS_KEY_FIL", "BACKUPD_STORES__0__SECRET_ACCESS_KEY_FILE"),
        ("BACKUPD_CONFIG_", "BACKUPD_CONFIG"),
    ],
)
def test_an_unknown_variable_is_refused_with_the_likely_spelling(refusal, variable, likely):
    """A typo in a variable's name is as loud as one in the file."""
    assert refusal(**{variable: "x"}) == f"unknown variable {variable} in the environment | did you mean {likely}?"


@pytest.mark.parametrize(
    "variable",
    [
        "BACKUPD_STORES",
        "BACKUPD_CAPTURE",
        "BACKUPD_SOURCE",
        "BACKUPD_STORES__0__URL_FILE",
        "BACKUPD_RETENTION",
        "BACKUPD_DATABASES__0__RETENTION",
    ],
)
def test_only_the_documented_variables_exist(refusal, variable):
    """A variable for a whole table, or a file for a value that is no secret, is unknown."""
    assert f"unknown variable {variable}" in refusal(**{variable: "{}"})


def test_every_wrong_variable_is_reported_at_once(refusal):
    """Two typos take one attempt to find."""
    reason = refusal(BACKUPD_STATEDIR="x", BACKUPD_CAPTURE__MAXLOCK="x")
    assert "BACKUPD_STATEDIR" in reason
    assert "BACKUPD_CAPTURE__MAXLOCK" in reason


def test_other_programs_variables_are_left_alone(load_text):
    """Click's completion, and what Kubernetes sets for a service called backupd, are not ours to refuse."""
    foreign = {
        "_BACKUPD_COMPLETE": "zsh_source",
        "BACKUPD_SERVICE_HOST": "10.0.0.1",
        "BACKUPD_SERVICE_PORT_HTTP": "80",
        "BACKUPD_PORT": "tcp://10.0.0.1:80",
        "BACKUPD_PORT_80_TCP_ADDR": "10.0.0.1",
        "backupd_state_dir": "/lower",
    }
    assert load_text(**foreign) == load_text()


@pytest.mark.parametrize(
    "service", ["BACKUPD", "BACKUPD_METRICS", "BACKUPD_HTTP", "BACKUPD_S3_2", "BACKUPD_PORT", "BACKUPD_SERVICE_HOST"]
)
@pytest.mark.parametrize(("protocol", "host"), [("tcp", "10.0.0.9"), ("udp", "fd00::9"), ("sctp", "10.0.0.9")])
def test_the_links_of_any_service_are_left_alone(load_text, service, protocol, host):
    """Variables that the kubelet sets for a service whose name begins with backupd are ignored."""
    url = f"{protocol}://{f'[{host}]' if ':' in host else host}:9620"
    port = f"{service}_PORT_9620_{protocol.upper()}"
    links = {
        f"{service}_SERVICE_HOST": host,
        f"{service}_SERVICE_PORT": "9620",
        f"{service}_SERVICE_PORT_HTTP_METRICS": "9620",
        f"{service}_PORT": url,
        port: url,
        f"{port}_PROTO": protocol,
        f"{port}_PORT": "9620",
        f"{port}_ADDR": host,
    }
    assert load_text(**links) == load_text()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("BACKUPD_HTTP__PORT", "tcp://10.0.0.9:9620"),
        ("BACKUPD_HTTP__SERVICE_PORT", "9620"),
        ("BACKUPD_HTTP_PORT", "9620"),
        ("BACKUPD_PORT", "9620"),
        ("BACKUPD_SERVICE_HOST", "backups.example.org"),
        ("BACKUPD_SERVICE_PORTS", "9620"),
        ("BACKUPD_PORT_9620_TCP", "yes"),
        ("BACKUPD_STORES__0__SERVICE_HOST", "10.0.0.9"),
        ("BACKUPD_STORES_0_URL", "tcp://10.0.0.9:9620"),
    ],
)
def test_what_only_looks_like_a_service_link_is_refused(refusal, variable, value):
    """A typing error in one of ours must not be passed over."""
    assert f"unknown variable {variable}" in refusal(**{variable: value})


_IN_VARIABLES = {
    "BACKUPD_STORES__0__URL": "/backups",
    "BACKUPD_DATABASES__0__PATH": "/data/*.db",
    "BACKUPD_STATE_DIR": "/state",
    "BACKUPD_CAPTURE__MAX_LOCK": "3s",
    "BACKUPD_PACKS__UPLOAD_THREADS": "4",
    "BACKUPD_HTTP__TOKEN": "a token of the tests, long enough",
    "BACKUPD_NOTIFICATIONS__0__URL": "json://localhost/hunter22",
    "BACKUPD_RUN_AS_OWNER": "true",
    "BACKUPD_CONFIG": "/nosuch.toml",
}


@pytest.mark.parametrize(
    ("wrap", "reason", "hint"),
    [
        ('"{}"', "must not have quotes around it", "docker run --env-file"),
        ("'{}'", "must not have quotes around it", "docker run --env-file"),
        ("\u201c{}\u201d", "must not have quotes around it", "docker run --env-file"),
        ("{}\r", "must not end with a line break", "Unix line endings"),
        ('"{}"\r', "must not end with a line break", "Unix line endings"),
        ("{}\n", "must not end with a line break", "echo -n"),
        ("{} ", "must not begin or end with a space", "alone"),
        ("{} # which", "must not be followed by a comment", "line of its own"),
        ("{}\x1b[0m", "must not contain a control character", "alone"),
    ],
)
@pytest.mark.parametrize("variable", _IN_VARIABLES)
def test_what_tools_keep_around_a_value_is_refused(refusal, variable, wrap, reason, hint):
    """Quotes, line breaks or comments around a value are refused by the variable's name, without the value."""
    value = _IN_VARIABLES[variable]
    said = refusal(**{variable: wrap.format(value)})
    key = variable.rpartition("__")[2].removeprefix("BACKUPD_").lower()
    assert said.startswith(f"{variable}: {key} {reason}")
    assert hint in said
    assert value not in said or len(value) < 5


@pytest.mark.parametrize("variable", ["BACKUPD_STORES__0__URL", "BACKUPD_STATE_DIR", "BACKUPD_DATABASES__0__PATH"])
@pytest.mark.parametrize("value", ['"/a', "/a'"])
def test_a_place_with_one_quote_is_refused(refusal, variable, value):
    """A path or URL that begins or ends with a quote is refused."""
    assert "must not have quotes around it" in refusal(**{variable: value})


def test_public_keys_may_stand_on_lines_of_their_own(load_text):
    """A variable that is a list is the one that has line breaks."""
    key = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
    assert load_text(BACKUPD_ENCRYPTION__RECIPIENTS=f"{key}\n").encryption.recipients == (key,)


@pytest.mark.parametrize("variable", ["BACKUPD_DATABASES__0__PATH", "BACKUPD_STORES__0__URL", "BACKUPD_STATE_DIR"])
def test_a_value_in_another_encoding_is_refused(refusal, variable):
    """A process gets bytes from its environment, and not all bytes are UTF-8."""
    said = refusal(**{variable: b"/data/\xff.db".decode(errors="surrogateescape")})
    assert said.startswith(f"{variable}: the value is not UTF-8 text")


def test_a_wrong_value_from_a_variable_names_the_variable(refusal):
    """A problem is put down to the variable, also where the file has the key too."""
    reason = refusal('[capture]\nmax_lock = "1s"', BACKUPD_CAPTURE__MAX_LOCK="3")
    assert reason.startswith("BACKUPD_CAPTURE__MAX_LOCK: '3' is not a duration")
    assert refusal(BACKUPD_STORES__0__REGION="x").startswith("BACKUPD_STORES__0__URL is not set")
    reason = refusal(BACKUPD_STORES__0__URL="/x", BACKUPD_STORES__0__REGION="x")
    assert reason.startswith("BACKUPD_STORES__0__*: a directory has no use for region")


def test_a_variable_does_not_hide_that_the_files_table_is_wrong(refusal, config_file):
    """What cannot be overlaid is reported, not replaced."""
    assert f"capture in {config_file}: must be a table" in refusal("capture = 3", BACKUPD_CAPTURE__MAX_LOCK="3s")
    assert f"stores in {config_file}: must be a table" in refusal("stores = 3", BACKUPD_STORES__0__URL="/x")
    assert f"stores[0] in {config_file}: must be a table" in refusal("stores = [3]", BACKUPD_STORES__0__URL="/x")
    reason = refusal("databases = [{path = '/a.db', retention = 3}]", BACKUPD_DATABASES__0__RETENTION__DAILY="1")
    assert f"databases[0].retention in {config_file}: must be a table, headed [databases.retention]" in reason


TEXT = st.text(alphabet="019asMBh ./~:@?#%*![]-_\\\"'{}\n\r\0ü€🙂", max_size=12) | st.sampled_from(
    ["s3://abc", "/x", "5s"]
)
ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.lists(TEXT, max_size=2)
LOCATIONS = [
    (key, key_in_table) for key in Settings.keys for key_in_table in (TABLES[key].keys if key in TABLES else [""])
]


@given(st.dictionaries(st.sampled_from(LOCATIONS), ANYTHING, max_size=4))
def test_any_configuration_file_is_valid_or_a_usage_error(values):
    """Any value of any key is valid or a usage error, and never another library's error."""
    lines = []
    for (key, key_in_table), value in values.items():
        written = "{}" if value is None else json.dumps(value, ensure_ascii=False)
        table = f"{{{key_in_table} = {written}}}" if key_in_table else written
        lines.append(f"{key} = {f'[{table}]' if Settings.keys[key].default == () else table}")
    given_keys = {line.partition(" =")[0]: line for line in lines}
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write("\n".join(given_keys.values()).encode(errors="replace"))
        file.flush()
        with contextlib.suppress(UsageError):
            load(Path(file.name), {})


@given(st.dictionaries(st.sampled_from(LOCATIONS), TEXT, max_size=4), st.sampled_from(["", "_FILE"]))
def test_any_variables_are_valid_or_a_usage_error(values, suffix):
    """Any value of any variable is valid or a usage error, and never another library's error."""
    environ = {"BACKUPD_CONFIG": "/dev/null"}
    for (key, key_in_table), value in values.items():
        position = [0] if Settings.keys[key].default == () else []
        location = [key, *position, key_in_table] if key_in_table else [key]
        is_secret = key_in_table in {"secret_access_key", "session_token"}
        environ[variable_name(*location) + (suffix if is_secret else "")] = value
    with contextlib.suppress(UsageError):
        load(None, environ)


# Secrets

KEYS = '[[stores]]\nurl = "s3://bucket"\naccess_key_id = "AKIA"\n'


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (b"hunter2", "hunter2"),
        (b"hunter2\n", "hunter2"),
        (b"hunter2\r\n", "hunter2"),
        (b"hunter 2", "hunter 2"),
    ],
)
def test_a_secret_is_read_from_a_file(load_text, tmp_path, content, secret):
    """A secret is read from a file, without the newline at its end."""
    (tmp_path / "secret").write_bytes(content)
    settings = load_text(KEYS, BACKUPD_STORES__0__SECRET_ACCESS_KEY_FILE=str(tmp_path / "secret"))
    assert settings.stores[0].secret_access_key.reveal() == secret


def test_a_secret_file_beats_the_configuration_file(load_text, tmp_path):
    """The environment comes first for secret files as well."""
    (tmp_path / "token").write_text("from-file")
    text = KEYS + 'secret_access_key = "x"\nsession_token = "y"'
    settings = load_text(text, BACKUPD_STORES__0__SESSION_TOKEN_FILE=str(tmp_path / "token"))
    assert settings.stores[0].session_token.reveal() == "from-file"
    assert settings.stores[0].secret_access_key.reveal() == "x"


def test_a_secret_and_its_file_at_once_are_an_error(refusal, tmp_path):
    """A secret that is set both in a variable and in a file is an error, because either might be meant."""
    reason = refusal(BACKUPD_STORES__0__SECRET_ACCESS_KEY="x", BACKUPD_STORES__0__SECRET_ACCESS_KEY_FILE=str(tmp_path))
    assert "BACKUPD_STORES__0__SECRET_ACCESS_KEY and BACKUPD_STORES__0__SECRET_ACCESS_KEY_FILE are both set" in reason


def test_an_empty_variable_beside_a_secret_file_is_no_conflict(load_text, tmp_path):
    """An empty variable, as Compose passes one, does not conflict with a secret file."""
    (tmp_path / "secret").write_text("x")
    environ = {"BACKUPD_STORES__0__SECRET_ACCESS_KEY": ""}
    settings = load_text(KEYS, BACKUPD_STORES__0__SECRET_ACCESS_KEY_FILE=str(tmp_path / "secret"), **environ)
    assert settings.stores[0].secret_access_key.reveal() == "x"


@pytest.mark.parametrize(
    ("make", "reason", "hint"),
    [
        (lambda path: path.with_suffix(".other").touch(), "cannot be read: No such file or directory", "is it"),
        (lambda path: path.mkdir(), "cannot be read: Is a directory", "Docker makes a directory"),
        (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links", "put the secret"),
        (lambda path: path.write_bytes(b"hunter2\xff"), "is not UTF-8 text", "put the secret"),
        (lambda path: path.write_bytes(b"\n"), "is empty", "put the secret"),
    ],
    ids=["missing", "directory", "loop", "not-utf-8", "empty"],
)
def test_a_secret_file_without_a_secret_is_an_error(refusal, tmp_path, make, reason, hint):
    """The variable and the path are named, and what to do; the content never."""
    path = tmp_path / "secret"
    make(path)
    said = refusal(KEYS, BACKUPD_STORES__0__SECRET_ACCESS_KEY_FILE=str(path))
    assert said.startswith(f"BACKUPD_STORES__0__SECRET_ACCESS_KEY_FILE: {path} {reason} | {hint}")
    assert "hunter2" not in said


@pytest.mark.parametrize("stray", ["\n", "\r", "\x00", "\x1b", " ", "\u202e"])
@pytest.mark.parametrize(
    ("key", "text"),
    [
        (
            "stores[0].secret_access_key",
            "stores = [{{url = 's3://bucket', access_key_id = 'x', secret_access_key = {}}}]",
        ),
        ("stores[0].access_key_id", "stores = [{{url = 's3://bucket', access_key_id = {}, secret_access_key = 'x'}}]"),
        (
            "stores[0].session_token",
            "stores = [{{url = 's3://bucket', access_key_id='x', secret_access_key='x', session_token = {}}}]",
        ),
        ("stores[0].region", "stores = [{{url = 's3://bucket', region = {}}}]"),
        ("http.token", "http = {{token = {}}}"),
    ],
)
def test_a_key_with_a_stray_character_is_refused_by_its_name(refusal, config_file, key, text, stray):
    """A key with a stray character is refused by its name, before another error shows the secret."""
    said = refusal(text.format(json.dumps(f"hunter2-hunter2-hunter2{stray}")))
    assert said.startswith(f"{key} in {config_file}: must ")
    assert "hunter2" not in said


@pytest.mark.parametrize("content", [b"hunter2\n\n", b"hunter2\r", b" hunter2 ", b"hun\x1bter2\n"])
def test_a_secret_file_with_stray_characters_is_refused(refusal, tmp_path, content):
    """A secret file with more around the secret than one newline at its end is refused."""
    (tmp_path / "secret").write_bytes(content)
    said = refusal(KEYS, BACKUPD_STORES__0__SECRET_ACCESS_KEY_FILE=str(tmp_path / "secret"))
    assert said.startswith("BACKUPD_STORES__0__SECRET_ACCESS_KEY_FILE: must not ")
    assert "hunter2" not in said


def test_a_secret_does_not_show(load_text):
    """Settings that are printed show no secret."""
    settings = load_text(KEYS + 'secret_access_key = "hunter2"\nsession_token = "hunter2"')
    for shown in [repr(settings), str(settings)]:
        assert "hunter2" not in shown
        assert "s3://bucket" in shown


@pytest.mark.parametrize(
    "text",
    [
        KEYS + 'secret_access_key = "hunter2"\nregoin = "x"',
        KEYS + 'secret_access_key = "hunter2"\nmax_attempts = 0',
        KEYS + 'secret_access_key = ["hunter2"]',
        KEYS + 'session_token = "hunter2"',
        '[[stores]]\nurl = "/x"\nsecret_access_key = "hunter2"',
        '[[stores]]\nurl = "s3://bucket"\nsecret_access_key = "hunter2"',
        '[stores]\nurl = "s3://bucket"\nsecret_access_key = "hunter2"',
        '[[stores]]\nsecret_access_key = "hunter2"',
        '[[stores]]\nurl = "s3://AKIA:hunter2@bucket/x"',
        '[[stores]]\nurl = "s3://AKIA:hunter2/with/slashes@bucket/x"',
        '[[stores]]\nurl = "s3://bucket/x?secret=hunter2"',
        '[[stores]]\nurl = "sftp://user:hunter2@host/x"',
        '[[stores]]\nurl = "file://user:hunter2@host/x"',
        '[[stores]]\nurl = "s3://bucket"\nendpoint_url = "https://user:hunter2@host"',
        '[[stores]]\nurl = "s3://bucket"\nendpoint_url = "https://user:hunter2/x@host"',
        '[[stores]]\nurl = "s3://bucket"\nendpoint_url = "https://host?key=hunter2"',
        '[[stores]]\nurl = "s3://bucket"\nsecret_access_key = "hunter2',
    ],
)
def test_no_error_shows_a_secret(config_file, text):
    """No error about a configuration shows a secret in its message, its hint or the causes in its traceback."""
    config_file.write_text(text)
    with pytest.raises(UsageError) as caught:
        load(config_file, {})
    error = caught.value
    assert error.__context__ is None or "hunter2" not in repr(error.__context__)
    assert "hunter2" not in f"{error.hint}{''.join(traceback.format_exception(error))}"


# Stores


@pytest.mark.parametrize(
    ("url", "normal", "bucket", "prefix"),
    [
        ("s3://bucket", "s3://bucket", "bucket", ""),
        ("s3://bucket/", "s3://bucket", "bucket", ""),
        ("s3://bucket/a", "s3://bucket/a", "bucket", "a"),
        ("s3://bucket//a/b/", "s3://bucket/a/b", "bucket", "a/b"),
        ("s3://My_old.Bucket/a@b:c", "s3://My_old.Bucket/a@b:c", "My_old.Bucket", "a@b:c"),
        ("s3://abc/%20 ü", "s3://abc/%20 ü", "abc", "%20 ü"),
    ],
)
def test_a_bucket_url_names_bucket_and_prefix(url, normal, bucket, prefix):
    """Slashes at the prefix's ends mean nothing, and nothing is decoded."""
    store = StoreSettings(url=url)
    assert (store.is_s3, store.url, store.bucket, store.prefix) == (True, normal, bucket, prefix)
    with pytest.raises(ValueError, match="is not a directory"):
        _ = store.directory


@pytest.mark.parametrize(
    ("url", "directory"),
    [
        ("/backups", "/backups"),
        ("/backups/", "/backups"),
        ("/b:c/d", "/b:c/d"),
        ("file:///backups", "/backups"),
        ("file://localhost/backups", "/backups"),
        ("file:///my%20backups", "/my backups"),
        ("backups", "{cwd}/backups"),
        ("./a:b", "{cwd}/a:b"),
        ("../backups", "{cwd}/../backups"),
    ],
)
def test_a_directory_url_names_an_absolute_path(url, directory, tmp_path, monkeypatch):
    """A path or file:// URL is a directory, made absolute without resolving symbolic links."""
    monkeypatch.chdir(tmp_path)
    store = StoreSettings(url=url)
    assert not store.is_s3
    assert store.url == str(store.directory) == directory.format(cwd=tmp_path)
    with pytest.raises(ValueError, match="is not in a bucket"):
        _ = store.bucket


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "must not be empty"),
        (" s3://bucket", "begin or end with a space"),
        ("file:///a%20", "begin or end with a space"),
        ("sftp://host/path", "'sftp:' is not a kind of store"),
        ("S3://bucket", "'S3:' is not a kind of store"),
        ("s3:bucket/path", "'s3:' is not a kind of store"),
        ("sftp:host:/path", "'sftp:' is not a kind of store"),
        ("file:/path", "'file:' is not a kind of store"),
        ("file://host/path", "must not name a host"),
        ("file://backups", "must not name a host"),
        ("file:///a?b", "query"),
        ("s3://", "3 or more"),
        ("s3://ab", "3 or more"),
        ("s3:///abc", "3 or more"),
        ("s3://-abc", "3 or more"),
        ("s3://bucket:9000/x", "credentials or a port"),
        ("s3://key:secret@bucket", "credentials or a port"),
        ("s3://bucket?x=1", "query"),
        ("s3://bucket/a#b", "query"),
        ("s3://bucket/a//b", "empty part"),
        ("s3://bucket/a/../b", "empty part"),
        ("s3://bucket/a\nb", "unprintable"),
    ],
)
def test_what_names_no_store_is_refused(url, reason):
    """A URL that is not understood in full is refused, and never taken for a directory of that name."""
    with pytest.raises(UsageError, match=f"store URL: .*{re.escape(reason)}"):
        store_from_url(url)
    with pytest.raises(InvalidTableError, match=re.escape(reason)):
        StoreSettings(url=url)


def test_a_bucket_name_has_three_letters():
    """The shortest name of a bucket is accepted, by the function that command lines use too."""
    assert store_from_url("s3://abc") == StoreSettings(url="s3://abc")


@pytest.mark.parametrize(
    "url", ["s3.example.com", "ftp://x", "https://", "http:///x", "https://u:p@h", "https://h?x", "https://a b"]
)
def test_an_endpoint_is_a_plain_http_url(url):
    """An endpoint without scheme or host, or with credentials or a query, is refused."""
    with pytest.raises(InvalidTableError, match="must"):
        StoreSettings(url="s3://bucket", endpoint_url=url)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"access_key_id": "x"}, "access_key_id is set without secret_access_key"),
        ({"secret_access_key": "x"}, "secret_access_key is set without access_key_id"),
        ({"session_token": "x"}, "session_token is set without"),
        ({"sse_kms_key_id": "x"}, "sse_kms_key_id is set, but not used"),
        ({"sse_kms_key_id": "x", "server_side_encryption": "AES256"}, "sse_kms_key_id is set, but not used"),
        ({"secret_access_key": "", "access_key_id": "x"}, "must not be empty"),
    ],
)
def test_keys_of_a_store_that_need_each_other_come_together(keys, reason):
    """Half of the credentials, or a key for an encryption that is off, is an error."""
    with pytest.raises(InvalidTableError, match=reason):
        StoreSettings(url="s3://bucket", **keys)


@pytest.mark.parametrize("key", sorted(StoreSettings.keys.keys() - {"url", "retention"}))
def test_a_directory_takes_no_keys_of_a_bucket(refusal, key):
    """A key that would have no effect is refused rather than ignored."""
    value = '"AES256"' if key == "server_side_encryption" else '"auto"' if key == "addressing_style" else '"5m"'
    value = {"max_attempts": "5", "endpoint_url": '"https://h"', "put_only": "true"}.get(key, value)
    assert f"a directory has no use for {key}" in refusal(f'[[stores]]\nurl = "/x"\n{key} = {value}')


def test_one_store_twice_is_an_error(refusal):
    """Two spellings of one store are not two copies."""
    assert "the store s3://bucket/a has two entries" in refusal(
        '[[stores]]\nurl = "s3://bucket/a/"\n[[stores]]\nurl = "s3://bucket/a"'
    )


def test_one_url_at_two_services_is_refused(refusal):
    """Commands, locks and alarms know a store by its URL: one of the two would silently never be written."""
    reason = refusal('[[stores]]\nurl = "s3://bucket/a"\n[[stores]]\nurl = "s3://bucket/a"\nendpoint_url = "https://h"')
    assert "two stores have the URL s3://bucket/a: one at AWS, and one at https://h" in reason
    assert "give one of them another prefix" in reason


def test_one_bucket_at_two_services_is_two_stores_with_two_prefixes(load_text):
    """The URL distinguishes them."""
    text = '[[stores]]\nurl = "s3://bucket/a"\n[[stores]]\nurl = "s3://bucket/b"\nendpoint_url = "https://h"'
    assert len(load_text(text).stores) == 2


# Databases


@pytest.mark.parametrize("name", ["a", "7", "shop.v2_old-1", "a" * 100, "backupd", "trash"])
def test_a_database_name_that_fits_is_given_back(name):
    """Letters, digits, dots, hyphens and underscores make a name, up to 100 of them."""
    assert check_database_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "a" * 101, ".incoming", "-a", "_a", "a b", "a/b", "..", "ä", "a\n", "backupd.json", "RESTORE.md", "Rescue.PY"],
)
def test_a_database_name_that_can_not_be_stored_is_refused(name):
    """A name that is no single safe part of a key, or that the store uses itself, is refused."""
    with pytest.raises(UsageError, match="cannot be the name of a database"):
        check_database_name(name)


def test_a_database_is_named_by_its_file_or_by_the_user(load_text):
    """The default is the file's name without its last suffix."""
    settings = load_text('[[databases]]\npath = "/a/shop.v2.db"\n[[databases]]\npath = "/b/app.db"\nname = "blog"')
    assert find_databases(settings.databases) == (
        Database("shop.v2", Path("/a/shop.v2.db")),
        Database("blog", Path("/b/app.db")),
    )


def test_a_file_name_that_is_no_database_name_asks_for_one(refusal, config_file):
    """The error names the entry and the file, and says to set `name`."""
    reason = refusal('[[databases]]\npath = "/data/müll eimer.db"')
    assert reason.startswith(
        f"databases[0] in {config_file}: 'müll eimer' cannot be the name of a database (/data/müll eimer.db)"
    )
    assert "set `name`" in reason


def test_a_name_for_a_pattern_is_refused(refusal):
    """A name for a path with wildcards is refused, because it cannot stand for many files."""
    assert "a path with wildcards cannot have a name" in refusal('[[databases]]\npath = "/*.db"\nname = "x"')


def test_a_pattern_of_any_depth_is_refused(refusal):
    """** would promise something that is not done."""
    assert "'**' is not supported" in refusal('[[databases]]\npath = "/a/**/app.db"')


@pytest.mark.parametrize("second", ["shop", "Shop"])
def test_two_databases_with_one_name_are_refused(refusal, second):
    """Two names that differ at most in case are refused with both paths, because some file systems ignore case."""
    reason = refusal(f'[[databases]]\npath = "/a/shop.db"\n[[databases]]\npath = "/b/{second}.sqlite"')
    assert "two databases with one name" in reason
    assert "/a/shop.db" in reason
    assert f"/b/{second}.sqlite" in reason
    assert "set `name`" in reason


def test_one_file_twice_is_refused(refusal):
    """Two names for one file would be two histories of it."""
    reason = refusal('[[databases]]\npath = "/a.db"\n[[databases]]\npath = "/a.db"\nname = "b"')
    assert "/a.db has two entries" in reason


def test_one_pattern_twice_is_refused(refusal):
    """The second would never find a file, and what it says of schedules or retention would have no effect."""
    reason = refusal(
        '[[databases]]\npath = "/data/*.db"\n[[databases]]\npath = "/data/./*.db"\nretention.keep_last = 9'
    )
    assert "/data/*.db has two entries" in reason
    assert "remove one of them" in reason


def test_two_patterns_that_find_the_same_are_no_twins(load_text):
    """A file that both find belongs to the first; what they find changes, and is looked at then."""
    assert len(load_text('[[databases]]\npath = "/data/*.db"\n[[databases]]\npath = "/data/a*.db"').databases) == 2


@pytest.mark.parametrize(
    ("pattern", "file", "name"),
    [
        ("tenants/*/app.db", "tenants/acme/app.db", "acme"),
        ("data/*.db", "data/shop.db", "shop"),
        ("data/*", "data/shop.db", "shop.db"),
        ("data/db-?.db", "data/db-7.db", "7"),
        ("data/db-??.db", "data/db-42.db", "42"),
        ("data/db-[0-9][!a]*.db", "data/db-7bc.db", "7bc"),
        ("*/data/*.db", "acme/data/shop.db", "acme-shop"),
        ("*/v?-*.db", "acme/v2-shop.db", "acme-2-shop"),
        ("data/[[]*].db", "data/[shop].db", "shop"),
        ("data/a.b+(c)*.db", "data/a.b+(c)d.db", "d"),
        ("data/[]x]y.db", "data/xy.db", "x"),
    ],
)
def test_the_part_that_varies_names_a_database(tmp_path, pattern, file, name):
    """Every run of wildcards gives its text, joined by hyphens in order."""
    touch(tmp_path / file)
    entry = DatabaseSettings(path=f"{tmp_path}/{pattern}")
    assert entry.is_glob
    assert find_databases([entry]) == (Database(name, tmp_path / file),)


@pytest.mark.parametrize(
    ("path", "literal"),
    [("/a[[]1].db", "/a[1].db"), ("/a[*].db", "/a*.db"), ("/a[?].db", "/a?.db"), ("/a[1.db", "/a[1.db")],
)
def test_a_wildcard_in_brackets_is_a_character(path, literal):
    """A path whose wildcards are all meant as themselves is one file, and may have a name."""
    entry = DatabaseSettings(path=path, name="x")
    assert not entry.is_glob
    assert find_databases([entry]) == (Database("x", Path(literal)),)


def test_pattern_finds_only_databases(tmp_path):
    """SQLite's own files and directories are left out, hidden files too; the order is that of the paths."""
    names = ["b.db", "a.db", "a.db-wal", "a.db-shm", "a.db-journal", ".hidden.db"]
    touch(*(tmp_path / name for name in names), tmp_path / "directory.db/x")
    databases = find_databases([DatabaseSettings(path=f"{tmp_path}/*.db*")])
    assert [database.path.name for database in databases] == ["a.db", "b.db"]


def test_a_pattern_is_expanded_at_each_call(tmp_path):
    """Files come and go while backupd runs; a pattern without any is recognizable."""
    entries = [DatabaseSettings(path=f"{tmp_path}/*.db"), DatabaseSettings(path=f"{tmp_path}/plain.sqlite")]
    assert [database.name for database in find_databases(entries)] == ["plain"]
    assert discover_databases(entries).unmatched_patterns == (f"{tmp_path}/*.db",)
    touch(tmp_path / "new.db")
    assert [database.name for database in find_databases(entries)] == ["new", "plain"]
    assert discover_databases(entries).unmatched_patterns == ()


def test_a_plain_path_need_not_exist(tmp_path):
    """A plain path need not exist: whether the file is there is found out when it is read."""
    assert find_databases([DatabaseSettings(path=f"{tmp_path}/missing.db")])[0].path == tmp_path / "missing.db"


def test_symbolic_links_are_kept(tmp_path):
    """A path is the user's name for a file; also a broken link is found, so that it is missed rather than forgotten."""
    touch(tmp_path / "real/x.sqlite")
    (tmp_path / "link.db").symlink_to(tmp_path / "real/x.sqlite")
    (tmp_path / "broken.db").symlink_to(tmp_path / "gone")
    databases = find_databases([DatabaseSettings(path=f"{tmp_path}/*.db")])
    assert databases == (Database("broken", tmp_path / "broken.db"), Database("link", tmp_path / "link.db"))


def test_a_file_that_can_not_be_looked_at_is_found(tmp_path):
    """A file that cannot be looked at is found, so that its own run fails and no other."""
    touch(tmp_path / "good.db")
    (tmp_path / "odd.db").symlink_to("x" * 300)
    (tmp_path / "round.db").symlink_to("round.db")
    found = find_databases([DatabaseSettings(path=f"{tmp_path}/*.db")])
    assert [database.name for database in found] == ["good", "odd", "round"]


def test_two_found_files_with_one_name_are_refused(tmp_path):
    """A name that a pattern gives has to be unique too, and the error names both files."""
    touch(tmp_path / "a-b/c.db", tmp_path / "a/b-c.db")
    with pytest.raises(UsageError, match="two databases with one name") as caught:
        find_databases([DatabaseSettings(path=f"{tmp_path}/*/*.db")])
    assert "a-b/c.db" in caught.value.message
    assert "a/b-c.db" in caught.value.message


def test_a_found_file_that_can_not_be_named_says_what_to_do(tmp_path):
    """The way out that the error names, an entry of its own, works."""
    touch(tmp_path / "müller.db", tmp_path / "acme.db")
    pattern = DatabaseSettings(path=f"{tmp_path}/*.db")
    with pytest.raises(UsageError, match="müller") as caught:
        find_databases([pattern])
    assert "entry of its own" in caught.value.hint
    own = DatabaseSettings(path=f"{tmp_path}/müller.db", name="mueller")
    assert [database.name for database in find_databases([pattern, own])] == ["acme", "mueller"]


def test_a_file_that_two_patterns_find_belongs_to_the_first(tmp_path):
    """A file that two patterns match belongs to the first of them."""
    touch(tmp_path / "data/shop.db")
    entries = [DatabaseSettings(path=f"{tmp_path}/{pattern}") for pattern in ["*/shop.db", "data/*.db"]]
    assert [database.name for database in find_databases(entries)] == ["data"]


def test_a_path_alone_is_a_database(tmp_path, monkeypatch):
    """A path on a command line is taken as it is, wildcards included, and made absolute."""
    monkeypatch.chdir(tmp_path)
    assert database_from_path(Path("app.db")) == Database("app", tmp_path / "app.db")
    assert database_from_path(Path("/a[1].db"), name="x") == Database("x", Path("/a[1].db"))
    with pytest.raises(UsageError, match="cannot be the name of a database"):
        database_from_path(Path("/a[1].db"))


# Retention


OVERRIDDEN = """
[retention]
daily = 30
tagged = "60d"
grace = "1d"

[[databases]]
path = "/app.db"

[[databases]]
path = "/other.db"
[databases.retention]
daily = 3
monthly = 1
within = "2w"

[[stores]]
url = "/near"

[[stores]]
url = "s3://far"
[stores.retention]
monthly = 99
after_snapshot = false
"""


def policy(settings: Settings, database: str, store: StoreSettings) -> RetentionSettings | None:
    """The policy of one database in one store."""
    return settings.policies(store, entries_by_name(settings.databases)).get(database)


def test_a_policy_is_that_of_everything_then_the_databases_then_the_stores(load_text):
    """A table of a database, or of a store, replaces the keys that are written in it, and no other."""
    settings = load_text(OVERRIDDEN)
    near, far = settings.stores
    general = RetentionSettings(daily=30, tagged=timedelta(days=60), grace=timedelta(days=1))
    assert policy(settings, "app", near) == general
    assert policy(settings, "app", far) == general.replaced(monthly=99, after_snapshot=False)
    own = {"daily": 3, "monthly": 1, "within": timedelta(weeks=2)}
    assert policy(settings, "other", near) == general.replaced(**own)
    assert policy(settings, "other", far) == general.replaced(**own | {"monthly": 99, "after_snapshot": False})
    assert policy(settings, "other", store_from_url("/elsewhere")) == policy(settings, "other", near)


def test_a_store_may_have_a_grace_of_its_own(load_text):
    """The grace of a store holds for its databases, even for those that are not configured."""
    settings = load_text(OVERRIDDEN.replace("monthly = 99", 'grace = "9d"'))
    near, far = settings.stores
    assert policy(settings, "app", near).grace == settings.grace(near) == timedelta(days=1)
    assert policy(settings, "app", far).grace == settings.grace(far) == timedelta(days=9)


def test_a_default_that_is_written_beats_what_is_written_above(load_text):
    """Writing a key counts, not that its value differs from the default."""
    settings = load_text('[retention]\ndaily = 1\n[[databases]]\npath = "/app.db"\n[databases.retention]\ndaily = 14')
    assert policy(settings, "app", store_from_url("/x")) == RetentionSettings()


def test_a_database_that_is_not_configured_has_no_policy(load_text, tmp_path):
    """A configuration that was lost, or a tenant that has gone, never costs a snapshot."""
    store = store_from_url("/x")
    assert policy(load_text(), "app", store) is None
    assert policy(load_text("[retention]\ndaily = 1"), "app", store) is None
    touch(tmp_path / "tenants/acme.db")
    settings = load_text('[[databases]]\npath = "tenants/*.db"\nretention = {daily = 9}')
    assert policy(settings, "acme", store).daily == 9
    assert policy(settings, "gone", store) is None
    assert policy(settings, "Acme", store) is None


@pytest.mark.parametrize(
    ("text", "is_empty"),
    [
        ("", False),
        ("keep_last = 0\ndaily = 0\nweekly = 0\nmonthly = 0", True),
        ("keep_last = 0\ndaily = 0\nweekly = 0\nmonthly = 0\ntagged = '9d'", True),
        ("keep_last = 0\ndaily = 0\nweekly = 0\nmonthly = 0\nwithin = '1h'", False),
        *((f"keep_last = 0\ndaily = 0\nweekly = 0\nmonthly = 0\n{key} = 1", False) for key in ("hourly", "yearly")),
    ],
)
def test_a_policy_without_a_count_or_an_age_is_empty(load_text, text, is_empty):
    """The default is not empty; zeros everywhere are, whatever else is set."""
    assert load_text(f"[retention]\n{text}").retention.is_empty == is_empty


def test_variables_override_a_policy_at_every_depth(load_text):
    """Beside what the file says, and without a file."""
    settings = load_text(
        OVERRIDDEN,
        BACKUPD_RETENTION__DAILY="31",
        BACKUPD_RETENTION__AFTER_SNAPSHOT="false",
        BACKUPD_DATABASES__1__RETENTION__MONTHLY="2",
        BACKUPD_STORES__0__RETENTION__TIME_ZONE="Europe/Berlin",
    )
    near = settings.stores[0]
    assert policy(settings, "app", near).daily == 31
    assert policy(settings, "app", near).after_snapshot is False
    other = policy(settings, "other", near)
    assert (other.daily, other.monthly, other.time_zone) == (3, 2, "Europe/Berlin")
    alone = load_text(BACKUPD_DATABASES__0__PATH="/a.db", BACKUPD_DATABASES__0__RETENTION__WITHIN="90d")
    assert policy(alone, "a", near).within == timedelta(days=90)
    with pytest.raises(UsageError, match="BACKUPD_DATABASES__0__RETENTION__DAILY: must be a whole number"):
        load_text(BACKUPD_DATABASES__0__PATH="/a.db", BACKUPD_DATABASES__0__RETENTION__DAILY="many")


# What runs by itself


def test_a_schedule_is_an_interval_or_cron_and_an_entry_overrides_it(load_text):
    """The keys that an entry writes hold for its databases; the others come from [schedule]."""
    settings = load_text(
        "[[databases]]\npath = '/a.db'\nschedule = {snapshots = 'every 5m'}\n[[databases]]\npath = '/b.db'\n"
        "[schedule]\nsnapshots = '30 3 * * *'\ndrills = 'never'\ntime_zone = 'Europe/Berlin'\njitter = '20s'"
    )
    first, second = (settings.schedule_of(entry) for entry in settings.databases)
    assert (str(first.snapshots), str(second.snapshots)) == ("every 5m", "30 3 * * *")
    assert first.drills is None
    assert first.zone == second.zone == ZoneInfo("Europe/Berlin")
    assert (first.latest_start, Settings().schedule.latest_start) == (timedelta(seconds=20), timedelta(0))


def test_a_schedule_comes_from_the_environment_too(load_text):
    """Containers are configured so."""
    settings = load_text(BACKUPD_SCHEDULE__SNAPSHOTS="every 1h", BACKUPD_SCHEDULE__PRUNES="never")
    assert (str(settings.schedule.snapshots), settings.schedule.prunes) == ("every 1h", None)


@pytest.mark.parametrize("text", ["every 15", "15m ago", "* * * *", "61 * * * *", "every 0m", "", "never"])
def test_what_is_no_schedule_is_refused_with_an_example(refusal, text):
    """The key, what is wrong, and how it should look; snapshots cannot be switched off."""
    reason = refusal(f"[schedule]\nsnapshots = '{text}'")
    assert reason.startswith("schedule.snapshots in ")
    assert "every " in reason or "minute" in reason


def test_a_schedule_must_be_text(refusal):
    """A number is not taken for minutes."""
    assert 'write it like "every 15m"' in refusal("[schedule]\nsnapshots = 15")


@pytest.mark.parametrize(
    "listen", ["127.0.0.1", "localhost:0", "localhost:70000", "http://localhost:1", ":9620", "a b:1"]
)
def test_what_is_no_address_is_refused(refusal, listen):
    """An address to listen on must have a host and a port."""
    assert "is not an address to listen on" in refusal(f"[http]\nlisten = '{listen}'")


def test_http_listens_on_loopback_unless_configured(load_text):
    """IPv6 stands in brackets, and an empty text is for nowhere."""
    assert Settings().http.address == ("127.0.0.1", 9620)
    assert load_text("[http]\nlisten = '[::1]:80'").http.address == ("::1", 80)
    assert load_text("[http]\nlisten = ''").http.address is None


def test_a_short_token_is_refused_and_not_repeated(refusal):
    """A client that guesses it can have snapshots taken."""
    reason = refusal("[http]\ntoken = 'geheim'")
    assert reason.startswith("http.token in ")
    assert "geheim" not in reason


def test_secrets_of_targets_come_from_files(load_text, tmp_path):
    """The URL of a notification can come from a file, and settings do not show it."""
    (tmp_path / "notify").write_text("json://127.0.0.1/hush\n")
    settings = load_text(
        BACKUPD_NOTIFICATIONS__0__URL_FILE=str(tmp_path / "notify"),
        BACKUPD_HEARTBEATS__0__URL="https://hc.example.com/hush",
        BACKUPD_HEARTBEATS__0__DATABASE="app",
        BACKUPD_HTTP__TOKEN="0123456789abcdef",
    )
    assert settings.notifications[0].url.reveal() == "json://127.0.0.1/hush"
    assert settings.heartbeats[0].database == "app"
    assert "hush" not in repr(settings)
    assert "0123456789abcdef" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[[notifications]]\nurl = 'someone@example.com'", "notifications[0].url in {file}: must be an apprise URL"),
        ("[[heartbeats]]\nurl = 'ftp://example.com/hush'", "heartbeats[0].url in {file}: must be an http:// or https"),
        ("[[heartbeats]]\nurl = 'https:///hush'", "heartbeats[0].url in {file}: must be an http:// or https"),
    ],
)
def test_targets_that_cannot_be_reached_are_refused_without_their_url(refusal, config_file, text, reason):
    """A typing error must not put a secret into a log."""
    refused = refusal(text)
    assert refused.startswith(reason.format(file=config_file))
    assert "hush" not in refused


@pytest.mark.parametrize(
    "table",
    [
        "[[heartbeats]]\nurl = 'https://example.com:{port}/hush'",
        "[[heartbeats]]\nurl = 'https://hush@example.com:{port}'",
        "[[heartbeats]]\nurl = 'https://[::1]:{port}/hush'",
        "[[notifications]]\nurl = 'json://example.com:{port}/hush'",
        "[[notifications]]\nurl = 'mailto://user:hush@example.com:{port}?to=x'",
        "[[stores]]\nurl = 's3://bucket'\nendpoint_url = 'https://example.com:{port}/hush'",
        "[[stores]]\nurl = 's3://bucket'\nendpoint_url = 'https://[::1]:{port}'",
    ],
)
def test_a_port_that_cannot_exist_is_refused_without_its_url(refusal, config_file, table):
    """What nothing can connect to is found before the first alarm has to be sent."""
    for port in (0, 99999, "9" * 5000):
        refused = refusal(table.format(port=port))
        assert f"url in {config_file}: must have a port from 1 to 65535" in refused
        assert "hush" not in refused
    for port in (1, 65535):
        config_file.write_text(table.format(port=port))
        load(config_file, {})


@pytest.mark.parametrize(
    "table",
    [
        "[[heartbeats]]\nurl = 'https://example.com:/hush'",
        "[[heartbeats]]\nurl = 'https://[::1]/hush'",
        "[[notifications]]\nurl = 'tgram://99999999:hush/1'",
        "[[notifications]]\nurl = 'mailto://user:99999999/hush@example.com'",
        "[[stores]]\nurl = 's3://bucket'\nendpoint_url = 'https://[::1]'",
    ],
)
def test_what_only_looks_like_a_port_is_accepted(config_file, table):
    """A port may be left out, and tokens and passwords may have a colon before digits."""
    config_file.write_text(table)
    load(config_file, {})


def test_one_file_with_an_impossible_name_does_not_hide_the_others(tmp_path):
    """A long-running daemon continues with the files that can have their name."""
    touch(tmp_path / "good/app.db", tmp_path / "not good/app.db")
    entry = DatabaseSettings(path=str(tmp_path / "*/app.db"))
    found = discover_databases([entry])
    assert [database.name for _, database in found.databases] == ["good"]
    assert ["not good" in problem.message for _, problem in found.problems] == [True]


# The example


def uncommented_example() -> str:
    """The example with every key that it comments out."""
    return re.sub(r"^#(?=\S)", "", EXAMPLE.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_the_example_loads():
    """config.example.toml can be copied and used."""
    settings = load(EXAMPLE, {})
    assert [database.name for database in find_databases(settings.databases)] == ["app"]
    assert [store.url for store in settings.stores] == ["/backups"]


def test_the_example_loads_with_every_comment_taken_away(load_text):
    """The example is accepted with all of its commented lines."""
    settings = load_text(uncommented_example())
    assert [entry.is_glob for entry in settings.databases] == [False, True]
    assert [store.is_s3 for store in settings.stores] == [False, True]


def test_the_example_shows_every_key_and_no_other():
    """A key that the example lacks is a key that users do not find."""
    shown = tomllib.loads(uncommented_example())
    assert shown.keys() == Settings.keys.keys()
    for key, table in TABLES.items():
        tables = shown[key] if isinstance(shown[key], list) else [shown[key]]
        assert {name for table in tables for name in table} == table.keys.keys()


def test_the_example_shows_the_true_defaults(load_text):
    """What stands in the example is what happens without it."""
    settings = load_text(uncommented_example())
    assert settings.state_dir == default_state_dir({}, is_root=True)
    assert settings.databases[0].name == settings.databases[0].path.rpartition("/")[2].removesuffix(".db")
    tables = [settings.capture, settings.packs, settings.retention, settings.schedule, settings.daemon]
    for shown in [*tables, settings.health, settings.http, settings.stores[1]]:
        for key, field in type(shown).keys.items():
            if field.default is not REQUIRED and field.default is not None:
                assert getattr(shown, key) == field.default, key


def test_the_example_comments_out_only_what_has_no_default():
    """A key with a default stands uncommented, so that copying the example changes nothing."""
    shown = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))
    assert shown["capture"].keys() == TABLES["capture"].keys.keys()
    assert shown["packs"].keys() == TABLES["packs"].keys.keys()
    assert shown["retention"].keys() == TABLES["retention"].keys.keys() - {"within", "time_zone"}
    assert shown["schedule"].keys() == TABLES["schedule"].keys.keys() - {"time_zone", "jitter"}
    assert shown["daemon"].keys() == TABLES["daemon"].keys.keys()
    assert shown["health"].keys() == TABLES["health"].keys.keys()
    assert shown["http"].keys() == TABLES["http"].keys.keys() - {"token"}
    assert [entry.keys() for entry in shown["databases"]] == [{"path"}]
    assert [entry.keys() for entry in shown["stores"]] == [{"url"}]


_AGE = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
_SSH = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBgi+kRfCOB0MCkwSFcFdRbYlMzHSUNcEUmL8/eyCeTv me@home"


@pytest.mark.parametrize("text", [" ", ",", "\n"])
def test_text_without_a_public_key_does_not_switch_encryption_off(tmp_path, load_text, text):
    """A template whose value is missing is an error, in a file and in a variable."""
    file = tmp_path / "backupd.toml"
    file.write_text(f"[encryption]\nrecipients = {json.dumps(text)}\n")
    for load_it in (lambda: load(file, {}), lambda: load_text(BACKUPD_ENCRYPTION__RECIPIENTS=text)):
        with pytest.raises(UsageError) as caught:
            load_it()
        assert "has no public key" in caught.value.message


@pytest.mark.parametrize(
    ("text", "recipients"),
    [("", ()), (_AGE, (_AGE,)), (f"{_AGE},{_SSH}", (_AGE, _SSH)), (f" {_SSH}\n{_AGE} \n", (_SSH, _AGE))],
)
def test_public_keys_come_from_a_variable_too(tmp_path, text, recipients):
    """A variable has one public key, or several with commas or line ends between them, as a list in a file has."""
    settings = load(Path("/dev/null"), {"BACKUPD_ENCRYPTION__RECIPIENTS": text})
    assert settings.encryption.recipients == recipients
    file = tmp_path / "backupd.toml"
    file.write_text(f"identity_file = 'a.key'\n[encryption]\nrecipients = {list(recipients)!r}\n")
    assert load(file, {}).encryption.recipients == recipients
    assert load(file, {}).identity_file == tmp_path / "a.key"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1", "must be a list of public keys"),
        ("[1]", "must be a list of public keys"),
        ("['age1x']", "'age1x' is not an age public key"),
        ("['AGE-SECRET-KEY-1X']", "a secret key cannot be a recipient"),
        (f"{[_AGE] * 65!r}", "65 public keys are too many"),
    ],
)
def test_wrong_public_keys_are_refused(tmp_path, value, message):
    """A wrong list of public keys is refused by its key's name."""
    file = tmp_path / "backupd.toml"
    file.write_text(f"[encryption]\nrecipients = {value}\n")
    with pytest.raises(UsageError, match=message) as raised:
        load(file, {})
    assert "encryption.recipients" in raised.value.message


def test_loading_imports_no_slow_library():
    """Loading without variables imports no library that costs a fifth of a second."""
    code = (
        "import sys; from pathlib import Path; from backupd.config import load; load(Path('/dev/null'), {});"
        "print([name for name in ('boto3', 'asyncio', 'numpy') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert ran.stdout == "[]\n"
