"""Tables of the configuration: the keys that each may have, how values are read, and all that is wrong at once."""

from collections.abc import Callable, Iterator, Mapping
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Final,
    Literal,
    NamedTuple,
    NoReturn,
    Self,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
)

from backupd.config.values import InvalidValueError, read_switch, read_text

Location = tuple[int | str, ...]
_READERS: Mapping[Any, Callable[[object], object]] = {bool: read_switch, str: read_text}


class _Required:
    """The default of a key that has none."""


REQUIRED: Final = _Required()


class UnknownKeyError(InvalidValueError):
    """A table has no such key."""


class MissingKeyError(InvalidValueError):
    """A table lacks a key that has no default."""


class NotATableError(InvalidValueError):
    """A value stands where a table, or a list of tables, belongs."""


class Problem(NamedTuple):
    """What is wrong with the value at `location`, which is relative to the table that was read."""

    location: Location
    error: InvalidValueError


class InvalidTableError(ValueError):
    """A table has one or more `problems`. None of them repeats a value, unless one of our own rules does."""

    def __init__(self, *problems: Problem) -> None:
        places = (".".join(map(str, problem.location)) for problem in problems)
        texts = [f"{place}: {each.error.message}" for place, each in zip(places, problems, strict=True)]
        super().__init__("; ".join(texts))
        self.problems = problems

    def inside(self, key: int | str) -> Iterator[Problem]:
        """Return the problems as those of the table that has this one at `key`."""
        return (Problem((key, *location), error) for location, error in self.problems)


class Computed:
    """A default that is computed when a table without that key is made."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


def computed(*, default_factory: Callable[[], Any]) -> Any:
    """Declare the default of a key that depends on the environment."""
    return Computed(default_factory)


class Key:
    """One key of a table: its `type` (of an entry, if it `is_list`), its default, and how its value is read."""

    def __init__(self, annotation: Any, default: Any) -> None:
        """Take `type`, `type | None`, `tuple[table, ...]`, or one of these in `Annotated[..., reader, ...]`.

        Each reader takes what the one before it returned, the first one the value as it is written, and raises
        `InvalidValueError`. Only tables, bool, str and literals have a reader of their own.
        """
        self.default = default
        annotation, self._is_optional = _without_none(annotation)
        annotation, self._readers = _without_readers(annotation)
        annotation, _ = _without_none(annotation)
        self.is_list = get_origin(annotation) is tuple
        self.type = get_args(annotation)[0] if self.is_list else annotation
        if not self._readers:
            self._readers = (self._own_reader(),)

    @property
    def table(self) -> type["Table"] | None:
        """The table, or the kind of each of several tables, that this key heads; None for a value."""
        return self.type if isinstance(self.type, type) and issubclass(self.type, Table) else None

    def read(self, value: object) -> object:
        """Return the value as a table holds it. Raises `InvalidValueError` and `InvalidTableError`."""
        if value is None and self._is_optional:
            return None
        for reader in self._readers:
            value = reader(value)
        return value

    def _own_reader(self) -> Callable[[object], object]:
        if self.table is not None:
            return self._read_tables if self.is_list else self.table.read
        return self._read_choice if get_origin(self.type) is Literal else _READERS[self.type]

    def _read_tables(self, value: object) -> tuple["Table", ...]:
        if not isinstance(value, list | tuple):
            raise NotATableError("must be a list of tables")
        entries: list[Table] = []
        problems: list[Problem] = []
        for position, entry in enumerate(value):
            try:
                entries.append(self.type.read(entry))
            except InvalidTableError as error:
                problems += error.inside(position)
            except NotATableError as error:
                problems.append(Problem((position,), error))
        if problems:
            raise InvalidTableError(*problems)
        return tuple(entries)

    def _read_choice(self, value: object) -> object:
        *others, last = map(repr, get_args(self.type))
        if repr(value) not in {*others, last}:
            raise InvalidValueError(f"must be {', '.join(others)} or {last}")
        return value


def _without_none(annotation: Any) -> tuple[Any, bool]:
    if get_origin(annotation) not in {Union, UnionType}:
        return annotation, False
    (kind,) = (each for each in get_args(annotation) if each is not NoneType)
    return kind, True


def _without_readers(annotation: Any) -> tuple[Any, tuple[Callable[[object], object], ...]]:
    if get_origin(annotation) is not Annotated:
        return annotation, ()
    kind, *readers = get_args(annotation)
    return kind, tuple(readers)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(computed,))
class Table:
    """Base of the configuration's tables: values that do not change, each with the type that its key declares.

    A subclass declares its keys as a dataclass does.
    """

    keys: ClassVar[Mapping[str, Key]] = {}
    given: frozenset[str]
    """The keys that are set, as opposed to those that have their default."""

    def __init_subclass__(cls) -> None:
        """Take the keys from the annotations of the class."""
        cls.keys = {
            name: Key(annotation, vars(cls).get(name, REQUIRED)) for name, annotation in cls.__annotations__.items()
        }

    def __init__(self, /, **values: object) -> None:
        """Read the values as they are written, or already are in another table. Raises `InvalidTableError`."""
        problems: list[Problem] = []
        held = vars(self)
        for name, key in self.keys.items():
            try:
                held[name] = self._value_of(name, key, values)
            except InvalidTableError as error:
                problems += error.inside(name)
            except InvalidValueError as error:
                problems.append(Problem((name,), error))
        problems += (Problem((name,), UnknownKeyError("unknown key")) for name in values if name not in self.keys)
        held["given"] = frozenset(values)
        if not problems:
            try:
                self.check()
            except InvalidValueError as error:
                problems.append(Problem((), error))
        if problems:
            raise InvalidTableError(*problems) from None

    @staticmethod
    def _value_of(name: str, key: Key, values: Mapping[str, object]) -> object:
        if name in values:
            return key.read(values[name])
        if key.default is REQUIRED:
            raise MissingKeyError("is missing")
        return key.default.make() if isinstance(key.default, Computed) else key.default

    @classmethod
    def read(cls, value: object) -> Self:
        """Return the table of a mapping of keys to values, or one that is a table already.

        Raises `NotATableError` for anything else, and `InvalidTableError`.
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, dict):
            raise NotATableError("must be a table")
        return cls(**value)

    def check(self) -> None:
        """Raise `InvalidValueError` where valid values do not go together."""

    def replaced(self, **values: object) -> Self:
        """Return a copy with other values, which are neither read nor checked."""
        copy = object.__new__(type(self))
        vars(copy).update(vars(self) | values | {"given": self.given | values.keys()})
        return copy

    def overridden_by(self, *overrides: Self | None) -> Self:
        """Return this table with the keys that are set in each of `overrides`; a later one wins."""
        return self.replaced(**{key: getattr(table, key) for table in overrides if table for key in table.given})

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        values = (f"{key}={value!r}" for key, value in zip(self.keys, self._values(), strict=True))
        return f"{type(self).__name__}({', '.join(values)})"

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a table cannot be changed: {name}")

    def _values(self) -> tuple[object, ...]:
        return tuple(getattr(self, key) for key in self.keys)
