"""From a file and the environment to `Settings`, or to one error that names every wrong key and where it is."""

import glob
import os
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from backupd.config.problems import Origin, hint_to_be_let_in, one_error, refuse_what_tools_keep, variable_of
from backupd.config.settings import ENTRIES, TABLES, Settings, default_state_dir, home_directory
from backupd.config.stores import SCHEME
from backupd.config.values import absolute_path
from backupd.errors import UsageError
from backupd.trust import is_anothers, is_writable_for_others, way_of

_CONFIG = "BACKUPD_CONFIG"
_OF_THE_SYSTEM = Path("/etc/backupd/config.toml")
# Kubernetes and Docker put these into every container beside a service called "backupd" or "backupd-something"; they
# are not the user's. Names and values are as the kubelet writes them: BACKUPD_HTTP_PORT=9620 is a typing error.
_SERVICE = r"BACKUPD(_(?!_)[A-Z0-9_]*?)?"
_SERVICE_LINK = re.compile(
    rf"{_SERVICE}_SERVICE_HOST=[0-9A-Fa-f.:]+"
    rf"|{_SERVICE}_SERVICE_PORT(_[A-Z0-9_]+)?=[0-9]+"
    rf"|{_SERVICE}_PORT(_[0-9]+_(TCP|UDP|SCTP))?=(tcp|udp|sctp)://[^/]+"
    rf"|{_SERVICE}_PORT_[0-9]+_(TCP|UDP|SCTP)(_PROTO=(tcp|udp|sctp)|_PORT=[0-9]+|_ADDR=[0-9A-Fa-f.:]+)"
)


def load(config_file: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the configuration: `config_file`, or the first of the usual places, overlaid with BACKUPD_... variables.

    The usual places are $BACKUPD_CONFIG, ./backupd.toml, $XDG_CONFIG_HOME/backupd/config.toml (~/.config) and
    /etc/backupd/config.toml; when there is none of them, every key has its default. A relative path in a file starts at
    that file's directory, one in a variable at the current directory.

    A file in the current or the home directory that another user made, or may write, is refused. One that `config_file`
    or $BACKUPD_CONFIG names is meant.

    Raises `UsageError` for everything that is wrong; neither its text nor its causes contain a secret.
    """
    if named := environ.get(_CONFIG):
        refuse_what_tools_keep(_CONFIG, named)
    source = _config_file(config_file, environ)
    is_named = config_file is not None or bool(environ.get(_CONFIG))
    in_file = _read_toml(source, is_named=is_named or source == _OF_THE_SYSTEM) if source else {}
    variables = {
        name: value
        for name, value in environ.items()
        if value and name.startswith("BACKUPD_") and name != _CONFIG and not _is_service_link(name, value)
    }
    tree = _anchored(in_file, source.parent) if source else {}
    if variables:
        tree = _overlaid_with_variables(tree, variables)
    if "state_dir" not in tree:
        tree["state_dir"] = default_state_dir(environ, is_root=os.geteuid() == 0)
    try:
        return Settings.model_validate(tree, context={"source": source})
    except ValidationError as error:
        origin = Origin(source, in_file, frozenset(variables))
        problems = [origin.problem(details) for details in error.errors(include_url=False)]
    # Raised out here, so that pydantic's error, which holds the values, is not this one's context.
    raise one_error(problems)


def _is_service_link(name: str, value: str) -> bool:
    # Two underscores are between our own keys, and in no usual name of a service.
    return "__" not in name and _SERVICE_LINK.fullmatch(f"{name}={value}") is not None


def _config_file(config_file: Path | None, environ: Mapping[str, str]) -> Path | None:
    return first_of_usual_places(environ) if config_file is None else absolute_path(config_file)


def first_of_usual_places(environ: Mapping[str, str]) -> Path | None:
    """The file that a command reads which no option leads to another; None when there is none."""
    if named := environ.get(_CONFIG):
        return absolute_path(named)
    return next((path for path in _usual_places(environ) if _is_there(path)), None)


def _reject_anothers(path: Path, status: os.stat_result) -> None:
    """Raise `UsageError` for a file that another user may have put where this one happens to stand."""
    another = next((each.st_uid for each in (*way_of(path).links, status) if is_anothers(each)), None)
    is_open = is_writable_for_others(status, but_group=os.geteuid() != 0)
    if another is None and not is_open:
        return
    whose = f"belongs to uid {another}" if another is not None else "can be written by other users"
    raise UsageError(
        f"{path} {whose}, so it is not used without being named",
        hint=f"if it is meant: --config {shlex.quote(_as_named(path))}; if not, start backupd in another directory",
    )


def _as_named(path: Path) -> str:
    return f"./{path.name}" if path.parent == Path.cwd() else str(path)


def _usual_places(environ: Mapping[str, str]) -> Iterator[Path]:
    yield Path("backupd.toml").absolute()
    xdg_config_home = Path(environ.get("XDG_CONFIG_HOME", ""))
    home = home_directory(environ)
    if xdg_config_home.is_absolute():
        yield xdg_config_home / "backupd/config.toml"
    elif home is not None:
        yield home / ".config/backupd/config.toml"
    yield _OF_THE_SYSTEM


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except OSError:
        # Another user's home, as with HOME=/root and a process of uid 1000, is a place without a file for this one.
        return False
    return True


def _read_toml(path: Path, *, is_named: bool) -> dict[str, Any]:
    """What is in the file. Unless it `is_named`, it must be the user's own, or root's."""
    hint = "config.example.toml shows how it should look"
    try:
        with open(path, "rb", opener=_open_at_once if not is_named else None) as opened:
            if not is_named:
                _reject_anothers(path, os.fstat(opened.fileno()))
            content = opened.read()
        # Some editors put a byte order mark first, which TOML does not know.
        return tomllib.loads(content.decode("utf-8-sig"))
    except FileNotFoundError:
        problem = f"no such configuration file: {path}"
        hint = "check --config or BACKUPD_CONFIG"
    except IsADirectoryError:
        problem = f"{path} is a directory, not a configuration file"
        hint = "Docker makes one when the file that should be mounted there does not exist"
    except PermissionError as error:
        problem, hint = f"can not read {path}: {error.strerror}", hint_to_be_let_in()
    except OSError as error:
        problem = f"can not read {path}: {error.strerror}"
    except UnicodeDecodeError as error:
        problem, hint = f"{path} is not UTF-8 text (byte {error.start})", "save it as UTF-8"
    except (ValueError, RecursionError) as error:
        problem = f"{path} is not valid TOML: {error}"
    raise UsageError(problem, hint=hint)


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # another user's named pipe would be waited for


def _anchored(in_file: dict[str, Any], directory: Path) -> dict[str, Any]:
    """A copy in which relative paths start at `directory`; what is not a relative path is left to the validation."""

    def anchor(table: Any, key: str, start: str) -> Any:
        value = table.get(key) if isinstance(table, dict) else None
        if (
            not isinstance(value, str)
            or not value
            or value[0] in "/~"
            or (key == "url" and SCHEME.match(value.strip()))
        ):
            return table
        return {**table, key: f"{start}/{value}"}

    tree = anchor(anchor(in_file, "state_dir", str(directory)), "identity_file", str(directory))
    if isinstance(databases := tree.get("databases"), list):
        # A path is a pattern, and the directory in front of it is not.
        start = glob.escape(str(directory))
        tree = {**tree, "databases": [anchor(table, "path", start) for table in databases]}
    if isinstance(stores := tree.get("stores"), list):
        start = str(directory)
        tree = {**tree, "stores": [anchor(anchor(table, "url", start), "ca_bundle", start) for table in stores]}
    return dict(tree)


def _overlaid_with_variables(tree: dict[str, Any], variables: Mapping[str, str]) -> dict[str, Any]:
    from backupd.config.environment import read_variables  # noqa: PLC0415  (see there: 0.2 s)

    overlay, problems = read_variables(variables)
    if problems:
        raise one_error(problems)
    overlaid = dict(tree)
    for key, value in overlay.items():
        if key in ENTRIES:
            overlaid[key] = _entries_overlaid(key, tree.get(key, []), value)
        elif key in TABLES:
            overlaid[key] = _table_overlaid(tree.get(key, {}), value)
        else:
            overlaid[key] = value
    return overlaid


def _entries_overlaid(key: str, entries: Any, overlay: Mapping[str, dict[str, Any]]) -> Any:
    if not isinstance(entries, list):
        return entries
    overlaid = list(entries)
    for position, table in sorted((int(text), table) for text, table in overlay.items()):
        if position > len(overlaid):
            given, expected = (variable_of(key, number, *_first_key(table)) for number in (position, len(overlaid)))
            raise UsageError(f"{given} leaves a gap", hint=f"positions start at 0, and the next is {expected}")
        below = overlaid[position] if position < len(overlaid) else {}
        overlaid[position : position + 1] = [_table_overlaid(below, table)]
    return overlaid


def _first_key(table: Mapping[str, Any]) -> tuple[str, ...]:
    key = min(table)
    return (key, *_first_key(table[key])) if isinstance(table[key], dict) else (key,)


def _table_overlaid(table: Any, overlay: Mapping[str, Any]) -> Any:
    # What is no table in the file stays what it is, for the validation to refuse.
    if not isinstance(table, dict):
        return table
    values = {
        key: _table_overlaid(table.get(key, {}), value) if isinstance(value, dict) else value
        for key, value in overlay.items()
    }
    return {**table, **values}
