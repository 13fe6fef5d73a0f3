"""Finds prompts that begin alike, so that what they share is computed and stored once.

Prompts are compared by blocks of `BLOCK` tokens through a chain of hashes, as in vLLM's automatic prefix caching. A
`Prefix` is made when two rows that wait or run share enough, is locked while a row uses it, and is kept afterwards, the
least recently used ones going first when `max_tokens` are exceeded. Plain Python; where the keys and values lie is the
runner's business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import count

BLOCK = 32
MIN_TOKENS = 2 * BLOCK
"""Sharing less than this is not worth the second attention that every decode step pays for it."""


class Prefix:
    """The first tokens of several prompts. `num_prefilled` of them are with the device; `num_users` rows hold it."""

    __slots__ = ("last_use", "num_prefilled", "num_users", "token_ids")

    def __init__(self, token_ids: tuple[int, ...]) -> None:
        self.token_ids = token_ids
        self.num_prefilled = 0
        self.num_users = 0
        self.last_use = 0

    def __repr__(self) -> str:
        return f"Prefix({self.num_prefilled}/{len(self)} tokens, {self.num_users} users)"

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def is_prefilled(self) -> bool:
        return self.num_prefilled == len(self.token_ids)


class PrefixTable:
    """All prefixes, and how many of the rows at hand begin with each chain of blocks.

    Args:
        max_tokens: how many tokens all prefixes may hold together; 0 shares nothing.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._rows = Counter[int]()
        self._prefixes: dict[int, Prefix] = {}
        self._clock = count(1)

    def __repr__(self) -> str:
        return f"PrefixTable({self.num_tokens}/{self._max_tokens} tokens in {len(self._prefixes)})"

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self._prefixes.values()))

    def expect(self, prompt_ids: tuple[int, ...]) -> None:
        """A row with this prompt has come."""
        self._rows.update(self._chain(prompt_ids))

    def forget(self, prompt_ids: tuple[int, ...]) -> None:
        """A row with this prompt has ended."""
        for key in self._chain(prompt_ids):
            self._rows[key] -= 1
            if not self._rows[key]:
                del self._rows[key]

    def acquire(self, prompt_ids: tuple[int, ...]) -> Prefix | None:
        """The longest prefix that this prompt has in common with others, locked for one more row; `None` if it shares
        too little, or if there is no room for it beside the prefixes that are in use."""
        keys = list(self._chain(prompt_ids))
        for num_blocks in range(len(keys), MIN_TOKENS // BLOCK - 1, -1):
            key = keys[num_blocks - 1]
            prefix = self._prefixes.get(key)
            if prefix is None and self._rows[key] > 1:
                prefix = self._make(key, prompt_ids[: num_blocks * BLOCK])
            if prefix is not None and prefix.token_ids == prompt_ids[: len(prefix)]:  # keys are only hashes
                prefix.num_users += 1
                prefix.last_use = next(self._clock)
                return prefix
        return None

    def release(self, prefix: Prefix) -> None:
        """One row less uses this prefix."""
        prefix.num_users -= 1

    def take_evicted(self) -> tuple[Prefix, ...]:
        """Drop what is over the limit and in nobody's use; the runner can free it."""
        unused = sorted((p for p in self._prefixes.values() if not p.num_users), key=lambda prefix: prefix.last_use)
        excess, evicted = self.num_tokens - self._max_tokens, []
        for prefix in unused:
            if excess <= 0:
                break
            excess -= len(prefix)
            evicted.append(prefix)
        self._prefixes = {key: prefix for key, prefix in self._prefixes.items() if prefix not in evicted}
        return tuple(evicted)

    def clear(self) -> None:
        """Forget every row and every prefix."""
        self._rows.clear()
        self._prefixes.clear()

    def _make(self, key: int, token_ids: tuple[int, ...]) -> Prefix | None:
        num_locked = sum(len(prefix) for prefix in self._prefixes.values() if prefix.num_users)
        if num_locked + len(token_ids) > self._max_tokens:
            return None
        prefix = self._prefixes[key] = Prefix(token_ids)
        return prefix

    @staticmethod
    def _chain(prompt_ids: tuple[int, ...]) -> Iterator[int]:
        """A key for each run of whole blocks from the start; the last token stays out, since a row decodes from it."""
        key = 0
        for start in range(0, (len(prompt_ids) - 1) // BLOCK * BLOCK, BLOCK):
            key = hash((key, prompt_ids[start : start + BLOCK]))
            yield key
