"""Find the lines of a module that are executed together with a given line."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Scope:
    """The statement around a line: the lines of a compound statement's head, and always the line itself.

    `is_import` says that importing the module executes the statement. Tests are then found by the uses of its `names`,
    and for a function or a class, by its `body`.
    """

    path: str
    lines: frozenset[int]
    is_import: bool
    names: frozenset[str] = frozenset()
    body: frozenset[int] = frozenset()


def scope_of(project: Path, path: str, line: int) -> Scope:
    """Return the innermost statement around a line."""
    node, in_function = _innermost(_tree(project / path), line)
    if node is None:
        return Scope(path, frozenset({line}), is_import=True)
    inner = [_first_line(child) for child in _children(node)]
    end = min(inner) - 1 if inner else _last_line(node)
    lines = frozenset({line, *range(_first_line(node), end + 1)})
    if in_function:
        return Scope(path, lines, is_import=False)
    is_definition = isinstance(node, (*_FUNCTIONS, ast.ClassDef))
    body = frozenset(range(end + 1, _last_line(node) + 1)) if is_definition else frozenset()
    return Scope(path, lines, is_import=True, names=frozenset(_names(node)), body=body)


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes())


def _innermost(tree: ast.Module, line: int) -> tuple[ast.stmt | ast.ExceptHandler | None, bool]:
    found: ast.stmt | ast.ExceptHandler | None = None
    in_function = False
    waiting = list(_children(tree))
    while waiting:
        node = waiting.pop()
        if _first_line(node) <= line <= _last_line(node):
            in_function = in_function or isinstance(found, _FUNCTIONS)
            found, waiting = node, list(_children(node))
    return found, in_function


def _children(node: ast.AST) -> Iterator[ast.stmt | ast.ExceptHandler]:
    """Yield the statements directly in a node."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.stmt, ast.ExceptHandler)):
            yield child
        elif isinstance(child, ast.match_case):
            yield from _children(child)


def _first_line(node: ast.stmt | ast.ExceptHandler) -> int:
    decorators = getattr(node, "decorator_list", [])
    return min(node.lineno, *(decorator.lineno for decorator in decorators)) if decorators else node.lineno


def _last_line(node: ast.stmt | ast.ExceptHandler) -> int:
    return node.end_lineno or node.lineno


def _names(node: ast.AST) -> Iterator[str]:
    """Yield the names that a statement outside functions assigns; none for a function, which has a body."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    for target in targets:
        for part in ast.walk(target) if target is not None else ():
            if isinstance(part, ast.Name):
                yield part.id
