"""Placeholder: see the EosSet interface below."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EosToken:
    """One member of the EOS set: its id, its token text, and where it was found."""

    id: int
    token: str
    sources: tuple[str, ...]
