"""The Lua scripts that run inside Redis: a file each, put together with the parts that several of them share.

A line ``--- @include "ended"`` in a script puts ``ended.lua`` in front of it, once. Parts are looked for beside the
script, then beside this module: the worker's scripts use some that lie here. Knows nothing of what scripts do.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

SHARED = "mlxq.queue"
"""The package whose ``lua/`` folder has the parts that all may include."""

_INCLUDE = re.compile(r'^--- @include "(\w+)"\n', re.MULTILINE)


@cache
def source(name: str, package: str = SHARED) -> str:
    """The text of a script with all that it includes.

    Args:
        name: the file in the ``lua/`` folder, without its ending.
        package: whose folder that is.

    Raises:
        FileNotFoundError: there is no such script, or no such part.
    """
    parts: dict[str, str] = {}
    _add(name, package, parts)
    return "\n".join(parts.values())


def _add(name: str, package: str, parts: dict[str, str]) -> None:
    """Add a file, behind the parts that it includes."""
    if name not in parts:
        text = _read(name, package)
        for part in _INCLUDE.findall(text):
            _add(part, package, parts)
        parts[name] = _INCLUDE.sub("", text)


def _read(name: str, package: str) -> str:
    own = files(package) / "lua" / f"{name}.lua"
    return (own if own.is_file() else files(SHARED) / "lua" / f"{name}.lua").read_text(encoding="utf-8")
