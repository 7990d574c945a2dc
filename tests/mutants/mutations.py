"""The mutations: each replaces one expression or statement of a module's source."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_COMPARISONS: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_ARITHMETIC: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
_OTHER_NAME: Final = {"min": "max", "max": "min", "any": "all", "all": "any"}
#: Only a debugger shows the results of these.
_NOT_MUTATED: Final = frozenset({"__repr__", "__str__"})

#: A shorter source text is shown with its line.
_SHORT: Final = 20


@dataclass(frozen=True, order=True)
class Mutant:
    """One change: `new` replaces `old`, the bytes `start` to `end` of a file.

    `path` is relative to the project, `source` is the line.
    """

    path: str
    line: int
    start: int
    end: int
    old: str
    new: str
    source: str

    def apply(self, project: Path) -> None:
        """Write the changed file below `project`."""
        file = project / self.path
        source = file.read_bytes()
        file.write_bytes(source[: self.start] + self.new.encode() + source[self.end :])

    def __str__(self) -> str:
        """Return one line: the place, the old and the new text, and the source line of a short text."""
        old, new = (" ".join(text.split())[:90] for text in (self.old, self.new))
        around = f"  in  {self.source[:90]}" if len(old) < _SHORT else ""
        return f"{self.path}:{self.line}: {old}  ->  {new}{around}"


def mutants(project: Path, path: Path) -> list[Mutant]:
    """Return all mutants of one module."""
    source = path.read_bytes()
    tree = ast.parse(source)
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    found = []
    for node, new in _changes(tree):
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        old = source[start:end].decode()
        around = lines[node.lineno - 1].decode().strip()
        found.append(Mutant(str(path.relative_to(project)), node.lineno, start, end, old, new, around))
    return sorted(set(found))


def _changes(tree: ast.Module) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    """Yield the changes of all code except docstrings, annotations, texts and code for type checkers."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.FunctionDef) and (node.name in _NOT_MUTATED or _is_abstract(node)):
            continue
        if isinstance(node, ast.AnnAssign):
            waiting.extend([node.value] if node.value is not None else [])
            continue
        if isinstance(node, (ast.JoinedStr, ast.arg)) or (isinstance(node, ast.Assign) and _is_listing(node)):
            continue
        if isinstance(node, ast.FunctionDef):
            waiting.extend([*node.body, *node.args.defaults, *filter(None, node.args.kw_defaults)])
            continue
        for change in _KINDS:
            yield from change(node)
        waiting.extend(ast.iter_child_nodes(node))


def _is_abstract(function: ast.FunctionDef) -> bool:
    last = function.body[-1]
    return isinstance(last, ast.Expr) and isinstance(last.value, ast.Constant)


def _is_listing(node: ast.Assign) -> bool:
    return any(isinstance(target, ast.Name) and target.id in {"__all__", "msg"} for target in node.targets)


def _conditions(node: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    tests: list[ast.expr] = []
    if isinstance(node, (ast.If, ast.IfExp, ast.While)):
        tests.append(node.test)
    elif isinstance(node, ast.comprehension):
        tests.extend(node.ifs)
    for test in tests:
        if not isinstance(test, ast.Compare):
            yield test, f"(not ({ast.unparse(test)}))"
        yield test, "False" if not isinstance(node, ast.While) else "(False)"


def _comparisons(node: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        other = _COMPARISONS[type(node.ops[0])]()
        yield node, f"({ast.unparse(ast.Compare(node.left, [other], node.comparators))})"


def _combinations(node: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    if isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield node, f"({ast.unparse(ast.BoolOp(other, node.values))})"
        for number in range(len(node.values)):
            rest = node.values[:number] + node.values[number + 1 :]
            yield node, f"({ast.unparse(ast.BoolOp(node.op, rest) if len(rest) > 1 else rest[0])})"
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        if not any(
            isinstance(side, (ast.Constant, ast.JoinedStr)) and _is_text(side) for side in (node.left, node.right)
        ):
            yield node, f"({ast.unparse(ast.BinOp(node.left, _ARITHMETIC[type(node.op)](), node.right))})"
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _OTHER_NAME:
        yield node.func, _OTHER_NAME[node.func.id]


def _is_text(node: ast.Constant | ast.JoinedStr) -> bool:
    return isinstance(node, ast.JoinedStr) or isinstance(node.value, (str, bytes))


def _constants(node: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    if isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield node, str(not node.value)
        elif isinstance(node.value, int):
            yield node, str(node.value + 1)


def _statements(node: ast.AST) -> Iterator[tuple[ast.stmt, str]]:
    is_call = isinstance(node, ast.Expr) and isinstance(node.value, (ast.Call, ast.YieldFrom))
    if is_call or isinstance(node, (ast.Raise, ast.AugAssign)):
        assert isinstance(node, ast.stmt)
        yield node, "pass"
    elif isinstance(node, ast.Continue):
        yield node, "break"
    elif isinstance(node, ast.Break):
        yield node, "continue"


_KINDS: Final[tuple[Callable[[ast.AST], Iterator[tuple[ast.expr | ast.stmt, str]]], ...]] = (
    _conditions,
    _comparisons,
    _combinations,
    _constants,
    _statements,
)
