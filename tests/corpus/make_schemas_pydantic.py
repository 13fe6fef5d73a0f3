"""Writes `schemas_pydantic.json`: what pydantic makes of types that people ask models for, by name.

Run it where pydantic is installed (`pip install 'pydantic[email]'`): python tests/corpus/make_schemas_pydantic.py
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import ipaddress
import json
import pathlib
import re
import uuid
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, NotRequired, TypeVar

import pydantic
from annotated_types import Ge, Gt, Le, Len, Lt, MultipleOf
from pydantic import BaseModel, ConfigDict, Field, RootModel, TypeAdapter
from typing_extensions import TypeAliasType, TypedDict

OUT = Path(__file__).with_name("schemas_pydantic.json")
T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    GREEN = "grün"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Mixed(enum.Enum):
    A = 1
    B = "b"
    C = None


class Address(BaseModel):
    """Where somebody lives."""

    street: str
    postcode: Annotated[str, Field(pattern=r"^\d{5}$")]
    country: str | None = None


class Person(BaseModel):
    name: str = Field(min_length=1, max_length=40, description="full name", examples=["Ada"])
    age: int = Field(ge=0, lt=150)
    addresses: list[Address] = []


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", title="Strict one")
    a: int
    b: float = 0.5


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int


class TypedExtras(BaseModel):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, int]
    a: str


class Node(BaseModel):
    value: int
    children: list[Node] = []


class Linked(BaseModel):
    value: str
    next: Linked | None = None


class Cat(BaseModel):
    kind: Literal["cat"]
    meows: int


class Dog(BaseModel):
    kind: Literal["dog", "puppy"]
    barks: float


class Zoo(BaseModel):
    animal: Cat | Dog = Field(discriminator="kind")
    others: list[Annotated[Cat | Dog, Field(discriminator="kind")]] = []


class Undiscriminated(BaseModel):
    animal: Cat | Dog


class Page(BaseModel, Generic[T]):
    items: list[T]
    total: int


class Point(NamedTuple):
    x: int
    y: float = 0.0


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


@dataclass
class Item:
    name: str
    price: float = 0.0


class Tags(RootModel[list[str]]):
    pass


class Aliased(BaseModel):
    user_name: str = Field(alias="userName")


class Computed(BaseModel):
    width: int

    @pydantic.computed_field
    def area(self) -> int:
        return self.width**2


class Deprecated(BaseModel):
    old: int = Field(deprecated=True)


class Invoice(BaseModel):
    number: Annotated[str, Field(pattern=r"^INV-[0-9]{4,6}$")]
    issued: dt.date
    due: dt.datetime | None
    total: decimal.Decimal = Field(max_digits=10, decimal_places=2)
    lines: list[Item] = Field(min_length=1)
    currency: Literal["EUR", "USD"] = "EUR"


class Step(BaseModel):
    explanation: str
    output: str


class Maths(BaseModel):
    steps: list[Step]
    final_answer: str


Json = TypeAliasType("Json", "list[Json] | dict[str, Json] | str | int | float | bool | None")
JsonLike = TypeAliasType("JsonLike", "dict[str, JsonLike] | int")

TYPES: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "None": None,
    "Any": Any,
    "object": object,
    "bytes": bytes,
    "Decimal": decimal.Decimal,
    "date": dt.date,
    "datetime": dt.datetime,
    "time": dt.time,
    "timedelta": dt.timedelta,
    "UUID": uuid.UUID,
    "UUID1": pydantic.UUID1,
    "UUID4": pydantic.UUID4,
    "UUID7": pydantic.UUID7,
    "Path": pathlib.Path,
    "FilePath": pydantic.FilePath,
    "DirectoryPath": pydantic.DirectoryPath,
    "re.Pattern": re.Pattern,
    "IPv4Address": ipaddress.IPv4Address,
    "IPv6Address": ipaddress.IPv6Address,
    "IPv4Network": ipaddress.IPv4Network,
    "IPv6Network": ipaddress.IPv6Network,
    "IPv4Interface": ipaddress.IPv4Interface,
    "IPvAnyAddress": pydantic.IPvAnyAddress,
    "IPvAnyNetwork": pydantic.IPvAnyNetwork,
    "AnyUrl": pydantic.AnyUrl,
    "HttpUrl": pydantic.HttpUrl,
    "PostgresDsn": pydantic.PostgresDsn,
    "RedisDsn": pydantic.RedisDsn,
    "EmailStr": pydantic.EmailStr,
    "NameEmail": pydantic.NameEmail,
    "SecretStr": pydantic.SecretStr,
    "SecretBytes": pydantic.SecretBytes,
    "Json": pydantic.Json,
    "Json[list[int]]": pydantic.Json[list[int]],
    "JsonValue": pydantic.JsonValue,
    "Base64Str": pydantic.Base64Str,
    "Base64Bytes": pydantic.Base64Bytes,
    "ByteSize": pydantic.ByteSize,
    "PositiveInt": pydantic.PositiveInt,
    "NonNegativeFloat": pydantic.NonNegativeFloat,
    "NegativeInt": pydantic.NegativeInt,
    "FiniteFloat": pydantic.FiniteFloat,
    "StrictBool": pydantic.StrictBool,
    "PastDate": pydantic.PastDate,
    "FutureDatetime": pydantic.FutureDatetime,
    "AwareDatetime": pydantic.AwareDatetime,
    "NaiveDatetime": pydantic.NaiveDatetime,
    "int64": Annotated[int, Ge(-(2**63)), Le(2**63 - 1)],
    "uint64": Annotated[int, Ge(0), Lt(2**64)],
    "uint8": Annotated[int, Ge(0), Le(255)],
    "float32": Annotated[float, Ge(-3.4028234663852886e38), Le(3.4028234663852886e38)],
    "between 0 and 1": Annotated[float, Gt(0), Lt(1)],
    "multiple of 5": Annotated[int, MultipleOf(5), Ge(0), Le(100)],
    "multiple of 0.25": Annotated[float, MultipleOf(0.25)],
    "constr": pydantic.constr(min_length=2, max_length=8, pattern="^[a-z]+$"),
    "str of a length": Annotated[str, Len(3, 3)],
    "list[int]": list[int],
    "conlist": pydantic.conlist(int, min_length=1, max_length=3),
    "set[str]": set[str],
    "frozenset[int]": frozenset[int],
    "set of Literals": set[Literal["a", "b"]],
    "tuple[int, str]": tuple[int, str],
    "tuple[int, ...]": tuple[int, ...],
    "tuple[()]": tuple[()],
    "deque[int]": deque[int],
    "Sequence[float]": Sequence[float],
    "Iterable[int]": Iterable[int],
    "dict[str, int]": dict[str, int],
    "dict[int, str]": dict[int, str],
    "dict[Colour, int]": dict[Colour, int],
    "dict[Literal, int]": dict[Literal["a", "b"], int],
    "dict[date, int]": dict[dt.date, int],
    "dict[UUID, int]": dict[uuid.UUID, int],
    "dict of patterned keys": dict[Annotated[str, Field(pattern="^[a-z]+$")], int],
    "dict of long keys": dict[Annotated[str, Field(min_length=2, max_length=5)], int],
    "dict of at least one": Annotated[dict[str, int], Len(1)],
    "dict of at least two": Annotated[dict[str, int], Len(2)],
    "dict of at most three": Annotated[dict[str, int], Len(0, 3)],
    "dict[str, list[dict[str, str]]]": dict[str, list[dict[str, str]]],
    "Mapping[str, Any]": Mapping[str, Any],
    "defaultdict[str, list[int]]": defaultdict[str, list[int]],
    "OrderedDict[str, float]": OrderedDict[str, float],
    "Optional[int]": int | None,
    "Union[int, str]": int | str,
    "Literal of several types": Literal["a", 1, True, None],
    "Literal of one": Literal["only"],
    "Enum": Colour,
    "IntEnum": Level,
    "Mixed Enum": Mixed,
    "Address": Address,
    "Person": Person,
    "list[Person]": list[Person],
    "extra forbid": Strict,
    "extra allow": Open,
    "typed extras": TypedExtras,
    "recursive Node": Node,
    "recursive Linked": Linked,
    "discriminated union": Annotated[Cat | Dog, Field(discriminator="kind")],
    "Zoo": Zoo,
    "union of models": Undiscriminated,
    "generic Page[Person]": Page[Person],
    "NamedTuple": Point,
    "TypedDict": Movie,
    "dataclass": Item,
    "RootModel": Tags,
    "alias": Aliased,
    "computed field": Computed,
    "deprecated field": Deprecated,
    "Invoice": Invoice,
    "Maths": Maths,
    "recursive alias Json": Json,
    "recursive alias JsonLike": JsonLike,
    "Callable default": Annotated[int, Field(default=3, json_schema_extra={"x-order": 1})],
    "complex": complex,
}


def main() -> None:
    schemas: dict[str, Any] = {}
    for name, kind in TYPES.items():
        adapter = TypeAdapter(kind)
        for mode in ("validation", "serialization"):
            schema = adapter.json_schema(mode=mode)
            if schema not in schemas.values():
                schemas[name if mode == "validation" else f"{name} as it is written"] = schema
    made_by = f"pydantic {pydantic.VERSION}"
    OUT.write_text(json.dumps({"made_by": made_by, "schemas": schemas}, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(schemas)} schemas by {made_by}")


if __name__ == "__main__":
    main()
