"""Read `Settings` from a TOML file and from BACKUPD_... variables, or raise one error that names every wrong key."""

import difflib
import glob
import os
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from backupd.config.problems import Origin, check_variable, combined_error, permission_hint, variable_name
from backupd.config.settings import ENTRIES, Settings, default_state_dir, home_directory, tables_in
from backupd.config.stores import SCHEME
from backupd.config.tables import InvalidTableError, Key, Table
from backupd.config.values import InvalidValueError, Secret, absolute_path
from backupd.errors import UsageError
from backupd.system.trust import is_foreign, is_writable_by_others, way_of

_CONFIG = "BACKUPD_CONFIG"
_SYSTEM_WIDE = Path("/etc/backupd/config.toml")
_POSITION = re.compile(r"(?<=__)(?:0|[1-9][0-9]{0,3})(?=__)")
# Kubernetes and Docker put these into every container beside a service called "backupd" or "backupd-something"; they
# are not the user's. Names and values are as the kubelet writes them: BACKUPD_HTTP_PORT=9620 is a typing error.
_SERVICE = r"BACKUPD(_(?!_)[A-Z0-9_]*?)?"
_SERVICE_LINK = (
    rf"{_SERVICE}_SERVICE_HOST=[0-9A-Fa-f.:]+"
    rf"|{_SERVICE}_SERVICE_PORT(_[A-Z0-9_]+)?=[0-9]+"
    rf"|{_SERVICE}_PORT(_[0-9]+_(TCP|UDP|SCTP))?=(tcp|udp|sctp)://[^/]+"
    rf"|{_SERVICE}_PORT_[0-9]+_(TCP|UDP|SCTP)(_PROTO=(tcp|udp|sctp)|_PORT=[0-9]+|_ADDR=[0-9A-Fa-f.:]+)"
)


def load(config_file: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the configuration: `config_file`, or the first of the usual places, overlaid with BACKUPD_... variables.

    The usual places are $BACKUPD_CONFIG, ./backupd.toml, $XDG_CONFIG_HOME/backupd/config.toml (~/.config) and
    /etc/backupd/config.toml; without any of them, every key has its default. A relative path in a file starts at that
    file's directory, one in a variable at the current directory.

    A file in the current or the home directory is refused if another user made it or may write it, unless `config_file`
    or $BACKUPD_CONFIG names it.

    Raises one `UsageError` for everything that is wrong; neither its text nor its causes contain a secret.
    """
    if named := environ.get(_CONFIG):
        check_variable(_CONFIG, named)
    source = _config_file(config_file, environ)
    is_named = config_file is not None or bool(environ.get(_CONFIG))
    in_file = _read_toml(source, is_named=is_named or source == _SYSTEM_WIDE) if source else {}
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
        return Settings.from_file(source, tree)
    except InvalidTableError as error:
        origin = Origin(source, in_file, frozenset(variables))
        raise combined_error([origin.error_of(problem) for problem in error.problems]) from None


def _is_service_link(name: str, value: str) -> bool:
    # Two underscores are between our own keys, and in no usual name of a service.
    return "__" not in name and re.fullmatch(_SERVICE_LINK, f"{name}={value}") is not None


def _config_file(config_file: Path | None, environ: Mapping[str, str]) -> Path | None:
    return first_of_usual_places(environ) if config_file is None else absolute_path(config_file)


def first_of_usual_places(environ: Mapping[str, str]) -> Path | None:
    """Return the configuration file that is read when no option names one; None when there is none."""
    if named := environ.get(_CONFIG):
        return absolute_path(named)
    return next((path for path in _usual_places(environ) if _is_there(path)), None)


def _reject_anothers(path: Path, status: os.stat_result) -> None:
    """Raise `UsageError` for a file that another user may have put into the current directory."""
    another = next((each.st_uid for each in (*way_of(path).links, status) if is_foreign(each)), None)
    is_open = is_writable_by_others(status, but_group=os.geteuid() != 0)
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
    yield _SYSTEM_WIDE


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except OSError:
        # A home that this process may not enter, as with HOME=/root and uid 1000, counts as one without a file.
        return False
    return True


def _read_toml(path: Path, *, is_named: bool) -> dict[str, Any]:
    """Read a file, which must belong to this user or root unless it `is_named`."""
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
        problem, hint = f"cannot read {path}: {error.strerror}", permission_hint()
    except OSError as error:
        problem = f"cannot read {path}: {error.strerror}"
    except UnicodeDecodeError as error:
        problem, hint = f"{path} is not UTF-8 text (byte {error.start})", "save it as UTF-8"
    except (ValueError, RecursionError) as error:
        problem = f"{path} is not valid TOML: {error}"
    raise UsageError(problem, hint=hint)


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a named pipe of another user would block


def _anchored(in_file: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Return a copy whose relative paths start at `directory`; the validation deals with what is no path."""

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


def read_variables(variables: Mapping[str, str]) -> tuple[dict[str, Any], list[InvalidValueError]]:
    """Return the values of BACKUPD_... variables as a tree of keys, and all that is wrong with the variables' names.

    A list of tables is a dictionary by position ("0", "1") in the tree. The values are not checked.
    """
    problems: list[InvalidValueError] = []
    tree: dict[str, Any] = {}
    for name, value in variables.items():
        try:
            _reject_unknown_variable(name)
            _reject_other_encoding(name, value)
            check_variable(name, value)
            is_secret_file = _POSITION.sub("0", name) in _SECRET_FILES
            read = _secret_in_file(name, value, variables) if is_secret_file else value
        except InvalidValueError as problem:
            problems.append(problem)
            continue
        *outer, key = name.removeprefix("BACKUPD_").removesuffix("_FILE" if is_secret_file else "").lower().split("__")
        table = tree
        for part in outer:
            table = table.setdefault(part, {})
        table[key] = read
    return tree, problems


def _reject_unknown_variable(name: str) -> None:
    spelled = _POSITION.sub("0", name)
    if spelled in _KNOWN or spelled in _SECRET_FILES:
        return
    likely = difflib.get_close_matches(spelled, [*_KNOWN, *_SECRET_FILES, "BACKUPD_CONFIG"], n=1)
    hint = None
    if likely:
        position = _POSITION.search(name)
        hint = f"did you mean {_POSITION.sub(position[0], likely[0]) if position else likely[0]}?"
    raise InvalidValueError(f"unknown variable {name} in the environment", hint=hint)


def _reject_other_encoding(name: str, value: str) -> None:
    """Raise `InvalidValueError` for bytes that are not UTF-8: Python has them as surrogates."""
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidValueError(f"{name}: the value is not UTF-8 text", hint="write paths and names in UTF-8")


def _secret_in_file(name: str, path: str, variables: Mapping[str, str]) -> str:
    plain = name.removesuffix("_FILE")
    if plain in variables:
        raise InvalidValueError(f"{plain} and {name} are both set", hint="keep one of them")
    hint = "put the secret, and nothing else, into that file"
    try:
        secret = Path(path).read_bytes().decode()
    except UnicodeDecodeError:
        problem = "is not UTF-8 text"
    except (OSError, ValueError) as error:
        problem = f"cannot be read: {getattr(error, 'strerror', None) or 'not a path'}"
        hint = _how_to_make_readable(error) or hint
    else:
        # Editors and `echo` end a file with one newline that is not part of the secret; more than one may be.
        secret = secret.removesuffix("\n").removesuffix("\r") if secret.endswith("\n") else secret
        if secret:
            return secret
        problem = "is empty"
    raise InvalidValueError(f"{name}: {path} {problem}", hint=hint)


def _how_to_make_readable(error: Exception) -> str | None:
    if isinstance(error, FileNotFoundError):
        return "is it mounted? In Compose: `secrets:` of the service names it, and `secrets:` at the end has its place"
    if isinstance(error, IsADirectoryError):
        return "Docker makes a directory when the file that should be mounted there does not exist"
    return permission_hint() if isinstance(error, PermissionError) else None


def _variables_of(table: type[Table] = Settings, *location: int | str) -> Iterator[tuple[str, Key]]:
    inner = tables_in(table)
    for name, key in table.keys.items():
        if name in inner:
            position = [0] if key.is_list else []
            yield from _variables_of(inner[name], *location, name, *position)
        else:
            yield variable_name(*location, name), key


def _overlaid_with_variables(tree: dict[str, Any], variables: Mapping[str, str]) -> dict[str, Any]:
    overlay, problems = read_variables(variables)
    if problems:
        raise combined_error(problems)
    lists = {key: _entries_overlaid(key, tree.get(key, []), overlay.pop(key)) for key in ENTRIES & overlay.keys()}
    return {**_table_overlaid(tree, overlay), **lists}


def _entries_overlaid(key: str, entries: Any, overlay: Mapping[str, dict[str, Any]]) -> Any:
    if not isinstance(entries, list):
        return entries
    overlaid = list(entries)
    for position, table in sorted((int(text), table) for text, table in overlay.items()):
        if position > len(overlaid):
            given, expected = (variable_name(key, number, *_first_key(table)) for number in (position, len(overlaid)))
            raise UsageError(f"{given} leaves a gap", hint=f"positions start at 0, and the next is {expected}")
        below = overlaid[position] if position < len(overlaid) else {}
        overlaid[position : position + 1] = [_table_overlaid(below, table)]
    return overlaid


def _first_key(table: Mapping[str, Any]) -> tuple[str, ...]:
    key = min(table)
    return (key, *_first_key(table[key])) if isinstance(table[key], dict) else (key,)


def _table_overlaid(table: Any, overlay: Mapping[str, Any]) -> Any:
    if not isinstance(table, dict):
        return table  # the validation refuses it
    values = {
        key: _table_overlaid(table.get(key, {}), value) if isinstance(value, dict) else value
        for key, value in overlay.items()
    }
    return {**table, **values}


_KNOWN = frozenset(name for name, _ in _variables_of())
_SECRET_FILES = frozenset(f"{name}_FILE" for name, key in _variables_of() if key.type is Secret)
