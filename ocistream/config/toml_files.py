"""Read TOML files of bounded size; errors name the file and the key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ocistream import limits
from ocistream.errors import UsageError
from ocistream.oci.reference import printable
from ocistream.streams.files import disk_errors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["TomlTable", "read_toml"]


class TomlTable:
    """One table of a file. `label` names the table in errors: "FILE" or "FILE: registry.x"."""

    def __init__(self, label: str, values: Mapping[str, Any]) -> None:
        """Take the label and the values of the table."""
        self.label = label
        self.values = values

    def key_error(self, key: str, problem: str, hint: str | None = None) -> UsageError:
        """Build the error for a key of this table."""
        return UsageError(f"{self.label}: {printable(key)} {problem}", hint=hint)

    def text(self, key: str) -> str | None:
        """Return a string, or None if the key is missing.

        Raises:
            UsageError: the value has another type.
        """
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise self.key_error(key, "is not a string")
        return value

    def flag(self, key: str) -> bool | None:
        """Return a boolean, or None if the key is missing.

        Raises:
            UsageError: the value has another type.
        """
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.key_error(key, "is neither true nor false")
        return value

    def items(self, key: str) -> list[Any]:
        """Return a list, empty if the key is missing.

        Raises:
            UsageError: the value has another type.
        """
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.key_error(key, "is not a list")
        return value

    def table(self, key: str) -> TomlTable:
        """Return a nested table, empty if the key is missing.

        Raises:
            UsageError: the value has another type.
        """
        return self._child(key, self.values.get(key, {}))

    def tables(self, key: str) -> Iterator[TomlTable]:
        """Yield the tables of a list (`[[key]]`).

        Raises:
            UsageError: the value is not a list of tables.
        """
        for number, value in enumerate(self.items(key)):
            yield self._child(f"{key}[{number}]", value)

    def _child(self, key: str, value: object) -> TomlTable:
        if not isinstance(value, dict):
            raise self.key_error(key, "is not a table")
        return TomlTable(f"{self.label}: {printable(key)}", value)


def read_toml(path: Path, bound: int = limits.MAX_CONFIG_FILE) -> TomlTable | None:
    """Read a file of at most `bound` bytes; return None if it does not exist.

    Raises:
        UsageError: the file is too large or not TOML, or a string has a zero byte, which no name or path can have.
        LocalDiskError: the file cannot be read.
    """
    with disk_errors(f"cannot read {path}"):
        try:
            with path.open("rb") as file:
                raw = file.read(bound + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
    import tomllib

    if len(raw) > bound:
        msg = f"{path} is larger than {bound} bytes"
        raise UsageError(msg)
    try:
        table = TomlTable(str(path), tomllib.loads(raw.decode()))
    except UnicodeDecodeError as error:
        msg = f"{path} is not TOML: byte {error.start} is not UTF-8"
        raise UsageError(msg) from error
    except tomllib.TOMLDecodeError as error:
        msg = f"{path} is not TOML: {printable(str(error))}"
        raise UsageError(msg, hint="texts stand in quotes, and each key on a line of its own: toml.io") from error
    except ValueError as error:
        # Python limits the digits of a number, and tomllib does not convert that error.
        msg = f"{path} is not TOML: a number has too many digits"
        raise UsageError(msg) from error
    except RecursionError as error:
        msg = f"{path} is nested too deeply"
        raise UsageError(msg) from error
    if b"\\" in raw:
        _check_strings(table, table.values)
    return table


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
