"""A Jinja template that makes a prompt of a row: sandboxed, and strict about columns that aren't there.

A cell without a value is the empty text. Knows nothing of where rows and templates come from.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from mlxq.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from jinja2 import Environment, nodes

ROW = "row"
"""The whole row in a template, for columns whose names are no names in Jinja: ``{{ row["my column"] }}``."""


class PromptTemplate:
    """A template that was read.

    Args:
        source: the text; one newline at its end doesn't count.

    Raises:
        ConfigError: it is no template; the message names the line.
    """

    def __init__(self, source: str) -> None:
        from jinja2 import TemplateSyntaxError

        self.source = source
        environment = _environment()
        try:
            self._tree = environment.parse(source)
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise ConfigError(f"line {error.lineno} of the template: {error.message}") from error
        self._lines = _names_in(self._tree)

    def missing(self, columns: Collection[str]) -> str | None:
        """What is wrong if rows have these columns: the first name that is none of them, and its line."""
        for name, line in self._lines.items():
            if name not in columns and name != ROW:
                return f"line {line} of the template names the column {name}"
        return None

    def render(self, row: Mapping[str, Any]) -> str:
        """The prompt.

        Raises:
            RequestError: a column is missing, or the template does what it can't with this row.
        """
        from jinja2 import TemplateError, UndefinedError

        try:
            return self._template.render({**row, ROW: row})
        except UndefinedError as error:
            missing = self.missing(row)
            message = f"{missing}, which this row doesn't have" if missing else f"the template: {error.message}"
            raise RequestError(message, param="template", code="missing_column") from error
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            message = f"the template can't be filled in: {error}"
            raise RequestError(message, param="template", code="template_failed") from error


def _environment() -> Environment:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, finalize=_nothing_for_none)
    # Jinja's own writes <, > and & as escapes, for the middle of web pages.
    environment.filters["tojson"] = _to_json
    return environment


def _nothing_for_none(value: Any) -> Any:
    return "" if value is None else value


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, default=str)


def _names_in(tree: nodes.Template) -> dict[str, int]:
    """The names that the template takes from outside, and the line of each; not those that it asks about or has a
    default for."""
    from jinja2 import meta, nodes

    outside = meta.find_undeclared_variables(tree)
    asked = {
        node.node.name
        for kind in (nodes.Test, nodes.Filter)
        for node in tree.find_all(kind)
        if node.name in ("defined", "undefined", "default", "d") and isinstance(node.node, nodes.Name)
    }
    lines: dict[str, int] = {}
    for node in tree.find_all(nodes.Name):
        if node.name in outside - asked:
            lines.setdefault(node.name, node.lineno)
    return lines
