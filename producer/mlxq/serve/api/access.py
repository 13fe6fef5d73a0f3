"""Who may ask: API keys from a file, each with a name, and what a server without keys still refuses.

A name owns files and batches, so a key can be replaced by another under the same name. Knows nothing of what is asked.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mlxq.errors import ConfigError
from mlxq.files.paths import file_errors
from mlxq.serve.api.errors import ApiError

ANYONE = ""
"""Whose everything is where no key is asked for."""
MIN_KEY_CHARS = 16
OPEN_PATHS = frozenset({"/health"})
"""What anybody may ask."""

_LINE = re.compile(r"(?P<name>[A-Za-z0-9_.-]{1,64})\s+(?P<key>[!-~]+)")


class KeyRing:
    """The keys that are accepted. Holds only their hashes.

    Args:
        keys: key -> the name that it stands for.
    """

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._names = tuple((_hash(key), name) for key, name in keys.items())

    def __len__(self) -> int:
        return len(self._names)

    def name_of(self, key: str) -> str | None:
        """The name behind a key; `None` if it is none. Takes as long whichever it is."""
        found = None
        hashed = _hash(key)
        for known, name in self._names:
            if hmac.compare_digest(known, hashed):
                found = name
        return found


def read_keys(path: Path) -> KeyRing:
    """The keys in a file: on each line a name and its key, with white space between; ``#`` begins a comment.

    Raises:
        InputFileError: the file can't be read.
        ConfigError: a line is something else, or a key is too short or there twice.
    """
    with file_errors(path, "read"):
        text = path.read_text(encoding="utf-8", errors="replace")
    keys: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:  # the line itself isn't shown: it has a key in it
            raise ConfigError(f"line {number} of {path} is not a name and a key, such as: alice sk-0123456789abcdef")
        if len(found["key"]) < MIN_KEY_CHARS:
            raise ConfigError(f"the key in line {number} of {path} is shorter than {MIN_KEY_CHARS} characters")
        if found["key"] in keys:
            raise ConfigError(f"the key in line {number} of {path} is there twice")
        keys[found["key"]] = found["name"]
    if not keys:
        raise ConfigError(f"{path} has no keys")
    return KeyRing(keys)


class Access:
    """Lets a request through with the name of its owner in ``request.state.owner``, or answers it with an error."""

    def __init__(self, app: ASGIApp, keys: KeyRing | None) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            try:
                scope.setdefault("state", {})["owner"] = self._owner(Headers(scope=scope))
            except ApiError as error:
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _owner(self, headers: Headers) -> str:
        if self._keys is None:
            if "origin" in headers:
                # A browser sends forms of any page to this machine, too.
                raise ApiError("Requests from web pages need a server with keys.", status_code=403, code="no_browsers")
            return ANYONE
        scheme, _, key = headers.get("authorization", "").partition(" ")
        name = self._keys.name_of(key.strip()) if scheme.lower() == "bearer" else None
        if name is None:
            raise ApiError("Incorrect API key provided.", status_code=401, code="invalid_api_key")
        return name


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
