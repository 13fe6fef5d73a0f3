"""Where metrics are served: a port of this machine, or one of an address."""

from __future__ import annotations

import re
from dataclasses import dataclass

LOOPBACK = "127.0.0.1"
ADDRESS_FORM = "a port, or HOST:PORT to be seen from other machines"
_ADDRESS = re.compile(r"(?:(?P<host>[^:\[\]\s]+|\[[0-9a-fA-F:.]+\]):)?(?P<port>\d{1,5})")


@dataclass(frozen=True, slots=True)
class Address:
    """Port 0 is one that is free."""

    port: int
    host: str = LOOPBACK

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def read(cls, text: str) -> Address:
        """The address in a text such as ``9400``, ``0.0.0.0:9400`` or ``[::1]:9400``.

        Raises:
            ValueError: it is none.
        """
        found = _ADDRESS.fullmatch(text.strip())
        if found is None or int(found["port"]) > 65535:
            raise ValueError(f"{text!r} is not {ADDRESS_FORM}")
        return cls(int(found["port"]), (found["host"] or LOOPBACK).strip("[]"))
