"""Read TOML files as tables with declared keys. Each error names the file, the table and the key.

A table is a subclass of `TomlTable`. Its keys are declared once, with their types and defaults:

    class MirrorTable(TomlTable):
        location = required(text)
        insecure = optional(flag, False)

A `MirrorTable` is complete and checked: its `location` is a `str`, its `insecure` a `bool`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeAlias, TypeVar, overload

from ocistream import limits
from ocistream.errors import OcistreamError, UsageError
from ocistream.oci.reference import parse_registry, printable
from ocistream.registry.configuration import parse_registry_location
from ocistream.streams.files import disk_errors
from ocistream.streams.paths import is_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

_T = TypeVar("_T")
_Table = TypeVar("_Table", bound="TomlTable")
#: Converts the value of a key in a table, or raises `table.key_error(key, ...)`.
Reader: TypeAlias = "Callable[[TomlTable, str, Any], _T]"
_SECRET: Final = re.compile(r"pass|secret|token|user|auth|credential", re.IGNORECASE)


@dataclass
class _Key(Generic[_T]):
    """A declared key. In a table that was read, the attribute is the value."""

    read: Reader[_T]
    name: str
    #: The TOML value of a missing key.
    default: object = None
    is_required: bool = False
    #: A value for the hint of the error for a missing key, as TOML; "" for no hint.
    example: str = ""
    attribute: str = ""

    if TYPE_CHECKING:

        def __get__(self, table: TomlTable, kind: type[TomlTable]) -> _T: ...


def required(read: Reader[_T], *, key: str = "", example: str = "") -> _Key[_T]:
    """Declare a key that a table must have. Without `key`, its name is that of the attribute, with hyphens.

    `example` is a value in TOML, for the hint if the key is missing.
    """
    return _Key(read, key, is_required=True, example=example)


@overload
def optional(read: Reader[_T]) -> _Key[_T | None]: ...
@overload
def optional(read: Reader[_T], default: object, *, key: str = "") -> _Key[_T]: ...
def optional(read: Reader[Any], default: object = None, *, key: str = "") -> _Key[Any]:
    """Declare a key that a table may have. A missing key is read as if it had the TOML value `default`.

    `key` is its name, as for `required`.
    """
    return _Key(read, key, default)


class UnknownKeyError(UsageError):
    """A table has no such key. `is_table` says that its value is a table."""

    def __init__(self, message: str, key: str, *, hint: str, is_table: bool) -> None:
        """Take the message, the key and the hint."""
        super().__init__(message, hint=hint)
        self.key = key
        self.is_table = is_table


class TomlTable:
    """One table of a file. `label` names it in errors: "FILE" or "FILE, registry, x".

    A class without declared keys accepts all keys; their values are in `values`. Relative paths begin in `folder`, and
    `~/` is `home`.
    """

    #: Whether other keys than the declared ones are ignored. Otherwise they are errors.
    ignores_unknown: ClassVar[bool] = False
    #: The hint for an unknown key whose name suggests a password.
    sensitive_hint: ClassVar[str] = ""
    #: The hint for another unknown key, in front of the allowed ones.
    unknown_hint: ClassVar[str] = ""
    #: The hint for a value in place of such a table.
    not_a_table_hint: ClassVar[str] = ""
    #: Hints for some unknown keys, in place of the allowed ones.
    known_mistakes: ClassVar[Mapping[str, str]] = {}
    #: The declared keys.
    keys: ClassVar[Mapping[str, _Key[Any]]] = {}

    def __init_subclass__(cls) -> None:
        """Collect the declared keys, also of base classes."""
        cls.keys = {}
        for attribute, key in [item for base in reversed(cls.__mro__) for item in vars(base).items()]:
            if isinstance(key, _Key):
                key.attribute, key.name = attribute, key.name or attribute.replace("_", "-")
                cls.keys = {**cls.keys, key.name: key}

    def __init__(self, label: str, values: Mapping[str, Any], folder: Path, home: Path) -> None:
        """Check all keys and convert their values.

        Raises:
            UsageError: a key is unknown, missing, or has a wrong value.
        """
        self.label = label
        self.values = values
        self.folder = folder
        self.home = home
        if self.keys and not self.ignores_unknown:
            for name in values:
                if name not in self.keys:
                    raise self._unknown_key_error(name)
        for name, key in self.keys.items():
            value = values.get(name, key.default)
            if value is None and key.is_required:
                example = f"add a line such as {name} = {key.example}" if key.example else None
                raise self.missing_key_error(name, example)
            setattr(self, key.attribute, None if value is None else key.read(self, name, value))

    @classmethod
    def read(cls, parent: TomlTable, key: str, value: object) -> Self:
        """Read a nested table of this class.

        Raises:
            UsageError: the value is not a table, or a key of it is wrong.
        """
        if not isinstance(value, dict):
            raise parent.key_error(key, "is not a table", cls.not_a_table_hint or None)
        return cls(f"{parent.label}, {printable(key)}", value, parent.folder, parent.home)

    def _unknown_key_error(self, name: str) -> UnknownKeyError:
        from difflib import get_close_matches

        hint = f"allowed: {', '.join(sorted(self.keys))}"
        is_table = isinstance(self.values[name], dict)
        if self.sensitive_hint and _SECRET.search(name):
            hint = f"{self.sensitive_hint}; {hint}"
        # Where there is such a hint, all keys are tables.
        elif (is_table or not self.unknown_hint) and (close := get_close_matches(name, self.keys)):
            hint = f"did you mean {close[0]}? {hint}"
        elif self.unknown_hint:
            hint = f"{self.unknown_hint}; {hint}"
        msg = f"{self.label}: unknown key {printable(name)!r}"
        return UnknownKeyError(msg, name, hint=self.known_mistakes.get(name, hint), is_table=is_table)

    def key_error(self, key: str, problem: str, hint: str | None = None) -> UsageError:
        """Build the error for a key of this table."""
        return UsageError(f"{self.label}: {printable(key)} {problem}", hint=hint)

    def missing_key_error(self, key: str, hint: str | None = None) -> UsageError:
        """Build the error for a missing key of this table."""
        return UsageError(f"{self.label}: the key {key!r} is missing", hint=hint)

    def table(self, key: str) -> TomlTable:
        """Return a nested table as it is, empty if the key is missing.

        Raises:
            UsageError: the value is not a table.
        """
        return TomlTable.read(self, key, self.values.get(key, {}))


# -- readers of values ---------------------------------------------------------------------------------------


def text(table: TomlTable, key: str, value: object) -> str:
    """Read a string."""
    if not isinstance(value, str):
        raise table.key_error(key, "is not a string")
    return value


def parsed(parse: Callable[[str], _T], problem: str = "{}") -> Reader[_T]:
    """Return a reader of a string that a function parses. `problem` is what its error says; {} is the function's."""

    def read(table: TomlTable, key: str, value: object) -> _T:
        string = text(table, key, value)
        try:
            return parse(string)
        except OcistreamError as error:
            raise table.key_error(key, problem.format(error.message), error.hint) from error

    return read


def flag(table: TomlTable, key: str, value: object) -> bool:
    """Read a boolean."""
    if not isinstance(value, bool):
        raise table.key_error(key, "is neither true nor false")
    return value


def whole_number(maximum: float = math.inf) -> Reader[int]:
    """Return a reader of a whole number from 1 to `maximum`."""
    allowed = "above 0" if maximum == math.inf else f"from 1 to {maximum}"

    def read(table: TomlTable, key: str, value: object) -> int:
        # In Python, True is an int.
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= maximum:
            raise table.key_error(key, f"is not a whole number {allowed}")
        return value

    return read


def existing_file(table: TomlTable, key: str, value: object) -> Path:
    """Read the path of an existing file. With another path, each connection would fail and be retried."""
    path = text(table, key, value)
    try:
        resolved = resolve_path(
            table.folder, path if path.startswith("~/") else str(Path(path).expanduser()), table.home
        )
    except RuntimeError as error:
        raise table.key_error(key, "begins with an unknown home directory") from error
    if not is_file(resolved):
        raise table.key_error(key, f"names {printable(str(resolved))}: no such file")
    return resolved


def resolve_path(folder: Path, path: str, home: Path) -> Path:
    """Return a path relative to `folder`, or, with `~/`, relative to the user's home."""
    return home / path[2:] if path.startswith("~/") else folder / path


#: Reads `HOST[:PORT][/PATH]`, in normal form. Names of Docker Hub are full names (docker.io/...), as in containers' own
#: parser.
registry_location: Final = parsed(parse_registry_location, "is not HOST[:PORT][/PATH]")
#: Reads `HOST[:PORT]`, in lower case.
registry_host: Final = parsed(lambda host: parse_registry(host.lower()), "is not a registry's HOST[:PORT]")


def choice(*names: str) -> Reader[str]:
    """Return a reader of one of some names."""

    def read(table: TomlTable, key: str, value: object) -> str:
        if text(table, key, value) not in names:
            raise table.key_error(key, f"is not one of {', '.join(names)}")
        return str(value)

    return read


def items(table: TomlTable, key: str, value: object) -> list[Any]:
    """Read a list of any values."""
    if not isinstance(value, list):
        raise table.key_error(key, "is not a list")
    return value


def list_of(read_item: Reader[_T]) -> Reader[list[_T]]:
    """Return a reader of a list. Errors name an item as `key[0]`."""
    return lambda table, key, value: [
        read_item(table, f"{key}[{number}]", item) for number, item in enumerate(items(table, key, value))
    ]


def dict_of(read_item: Reader[_T], read_name: Reader[str] = text) -> Reader[dict[str, _T]]:
    """Return a reader of a table whose keys are names, such as hosts."""
    example = '"HOST"' if read_name is registry_host else "NAME"

    def read(table: TomlTable, key: str, value: object) -> dict[str, _T]:
        if not isinstance(value, dict):
            raise table.key_error(key, "is not a table", f"write [{key}.{example}]")
        named, found = TomlTable.read(table, key, value), dict[str, _T]()
        for key_name, item in named.values.items():
            name = read_name(named, key_name, key_name)
            if name in found:
                raise named.key_error(key_name, f"is set twice, as another name of {printable(name)}")
            try:
                found[name] = read_item(named, key_name, item)
            except UnknownKeyError as error:
                if error.is_table and read_name is registry_host:
                    error.hint = f'write the host in quotes: [{key}."{printable(_join_keys(key_name, item))}"]'
                raise
        return found

    return read


def _join_keys(name: str, value: object) -> str:
    """Return the host that TOML without quotes splits at its dots: `[registry.ghcr.io]` is a table in a table."""
    if isinstance(value, dict) and len(value) == 1:
        ((key, item),) = value.items()
        if isinstance(item, dict):
            return f"{name}.{_join_keys(key, item)}"
    return name


# -- files ---------------------------------------------------------------------------------------------------


def read_file(path: Path, kind: type[_Table], home: Path, bound: int = limits.MAX_CONFIG_FILE) -> _Table | None:
    """Read a file of at most `bound` bytes as a table of this class; return None if the file does not exist.

    Raises:
        UsageError: the file is too large or not TOML, a key is wrong, or a string has a zero byte, which no name or
            path can have.
        LocalDiskError: the file cannot be read.
    """
    with disk_errors(f"cannot read {path}"):
        try:
            with path.open("rb") as opened:
                raw = opened.read(bound + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
    import tomllib

    if len(raw) > bound:
        msg = f"{path} is larger than {bound} bytes"
        raise UsageError(msg, hint="this seems not to be a TOML file")
    try:
        values = tomllib.loads(raw.decode())
    except UnicodeDecodeError as error:
        msg = f"{path} is not TOML: byte {error.start} is not UTF-8"
        raise UsageError(msg, hint="this seems not to be text: name a TOML file") from error
    except tomllib.TOMLDecodeError as error:
        msg = f"{path} is not TOML: {printable(str(error))}"
        hint = "write text in quotes, and each key on its own line: see toml.io"
        if path.suffix in {".yaml", ".yml"}:
            hint = "this seems to be YAML, which ocistream does not read: write the same as TOML"
        raise UsageError(msg, hint=hint) from error
    except ValueError as error:
        # Python limits the digits of a number, and tomllib does not convert that error.
        msg = f"{path} is not TOML: a number has too many digits"
        raise UsageError(msg) from error
    except RecursionError as error:
        msg = f"{path} is nested too deeply"
        raise UsageError(msg) from error
    if b"\\" in raw:
        _check_strings(TomlTable(str(path), {}, path.parent, home), values)
    return kind(str(path), values, path.parent, home)


def _check_strings(table: TomlTable, value: object, key: str = "") -> None:
    """Raise UsageError for a zero byte in a string; TOML allows one only as an escape."""
    if isinstance(value, str) and "\0" in value:
        raise table.key_error(key, "has a zero byte")
    if isinstance(value, list):
        for item in value:
            _check_strings(table, item, key)
    elif isinstance(value, dict):
        for name, item in value.items():
            if "\0" in name:
                raise table.key_error(name, "has a zero byte")
            _check_strings(table, item, f"{key}.{name}" if key else name)
