"""What is known about one field of the wire JSON, and how an object is read by a table of its fields.

A field is honoured, or is a label, or is refused; which fields there are is for `fields`, `conversation` and
`structures` to say. Knows nothing of how fields go together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxq.errors import RequestError
from mlxq.requests import checks
from mlxq.requests.checks import Check


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field that is understood. ``null`` always means absent.

    With a `check` the field is honoured (or is a `label`, which by definition can't change the answer). Without
    one it is refused: only the `neutral` values are accepted. `neutral` values ask for nothing, so they are accepted
    where the field makes no sense, too. `hint` says what to use instead of a refused field. `fills` names the attribute
    of `Sampling` that the field sets. `inside` are the fields of the object (or of every object in the list) that
    the value may be. A refused field that is `droppable` says how to serve a request, not what to answer, so who allows
    unknown fields has it left out.
    """

    name: str
    doc: str
    check: Check[Any] | None = None
    neutral: tuple[Any, ...] = ()
    fills: str | None = None
    chat_only: bool = False
    label: bool = False
    hint: str | None = None
    droppable: bool = False
    inside: Mapping[str, Field] = field(default_factory=dict)

    def read(self, value: Any, param: str) -> Any:
        """The value as the contract wants it.

        Raises:
            RequestError: the value has the wrong type, is out of range, or asks for what there is not.
        """
        if self.check is not None:
            return self.check(value, param)
        if not self.asks_nothing(value):
            raise self._unsupported(param)
        return value

    def asks_nothing(self, value: Any) -> bool:
        """Whether the value is one of the neutral ones."""
        return any(checks.same_json(value, neutral) for neutral in self.neutral)

    def may_go(self, value: Any) -> bool:
        """Whether the value can be left out where unknown fields can, though it says something."""
        return self.droppable and not self.asks_nothing(value)

    def _unsupported(self, param: str) -> RequestError:
        accepted = " or ".join(json.dumps(value) for value in (*self.neutral, None))
        instead = self.hint or f"leave it out or set it to {accepted}"
        if self.droppable:
            instead = f"{instead}, or drop such fields with --allow-unknown-params"
        message = f"{param} is not available in this version of mlxq; {instead}"
        return RequestError(message, param=param, code="unsupported_field")


def honoured(
    name: str,
    check: Check[Any],
    doc: str,
    *,
    neutral: tuple[Any, ...] = (),
    fills: str | None = None,
    chat_only: bool = False,
    inside: Mapping[str, Field] | None = None,
) -> Field:
    """A field that changes what is answered."""
    return Field(
        name=name, check=check, doc=doc, neutral=neutral, fills=fills, chat_only=chat_only, inside=inside or {}
    )


def label(name: str, check: Check[Any], doc: str) -> Field:
    """A field that may say anything, since it can't change the answer."""
    return Field(name=name, check=check, doc=doc, label=True)


def refused(name: str, *neutral: Any, doc: str, hint: str | None = None, droppable: bool = False) -> Field:
    """A field of OpenAI, vLLM or mlx_lm.server that is not available here."""
    return Field(name=name, neutral=neutral, doc=doc, hint=hint, droppable=droppable)


def table(*fields: Field) -> Mapping[str, Field]:
    """The fields by name."""
    return {each.name: each for each in fields}


def read_object(fields: Mapping[str, Field], value: Any, param: str) -> dict[str, Any]:
    """The honoured fields of an object, each read under its own path.

    Raises:
        RequestError: this is no object, one of its fields is unknown, or one has a wrong value.
    """
    given = {name: inner for name, inner in checks.an_object(value, param).items() if inner is not None}
    for name in given:
        if name not in fields:
            raise checks.unknown_field(name, fields, f"{param}.")
    read = {name: fields[name].read(inner, f"{param}.{name}") for name, inner in given.items()}
    return {name: inner for name, inner in read.items() if fields[name].check is not None}
