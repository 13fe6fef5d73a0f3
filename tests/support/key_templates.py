"""Every key that RQ or mlxq uses, as templates with holes, read off their sources: none is listed by hand."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import rq

from mlxq import keys

HOLE = "{}"
_PREFIXES = ("RQ_KEY_PREFIX", "FORMAT_KEY_PREFIX")
_HOLES = re.compile(r"\{\d\}|%s")


def templates() -> list[str]:
    """Such as ``rq:queue:{}``, where a hole is the name of a queue, a worker, a job, ..."""
    return sorted({*_of_rq(), *_of_mlxq()})


def _of_mlxq() -> Iterator[str]:
    for value in vars(keys).values():
        is_key_of_one = inspect.isfunction(value) and len(inspect.signature(value).parameters) == 1
        text = value(HOLE) if is_key_of_one else value
        if isinstance(text, str) and text.startswith("mlxq:"):
            yield text


def _of_rq() -> Iterator[str]:
    """RQ writes its keys as sums and f-strings that begin with its prefix, or with a name for such a text."""
    trees = [ast.parse(path.read_text()) for path in sorted(Path(rq.__path__[0]).rglob("*.py"))]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    assignments = [node for node in nodes if isinstance(node, ast.Assign | ast.AnnAssign)]
    names = dict.fromkeys(_PREFIXES, "rq")
    for _ in range(3):  # names for texts that begin with names for texts
        for node in assignments:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if text := _text(node.value, names):
                names |= {name: text for target in targets if (name := _name(target)) and name != "key"}
    for node in nodes:
        if isinstance(node, ast.BinOp | ast.JoinedStr) and (text := _text(node, names)):
            yield text + HOLE if text.endswith(":") else text


def _text(node: ast.AST | None, names: dict[str, str]) -> str | None:
    """What a sum or an f-string comes to, with holes; `None` if it doesn't begin as a key does."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and isinstance(node.right, ast.Constant):
        start = names.get(_name(node.left) or "")
        return start and start + _HOLES.sub(HOLE, str(node.right.value))
    if isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.FormattedValue):
        start = names.get(_name(node.values[0].value) or "")
        rest = "".join(HOLE if isinstance(part, ast.FormattedValue) else str(part.value) for part in node.values[1:])
        return start and start + rest
    return None


def _name(node: ast.AST | None) -> str | None:
    """The last part of a dotted name."""
    return getattr(node, "attr", None) or getattr(node, "id", None)
