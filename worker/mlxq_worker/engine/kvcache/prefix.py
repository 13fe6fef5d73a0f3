"""Finds prompts that begin alike, so that what they share is computed and stored once.

Prompts are compared by blocks of `BLOCK` tokens through a chain of hashes, as in vLLM's automatic prefix caching; what
is left behind the whole blocks is one more block, so equal prompts (n > 1, beams) share all but their last token. A
`Prefix` is made when two rows that wait or run share enough, is locked while a row uses it, and is kept afterwards, the
least recently used ones going first when `max_tokens` are exceeded. Plain Python; where the keys and values lie is the
runner's business.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice

BLOCK = 32
MIN_TOKENS = 2 * BLOCK
"""Sharing less than this, beside what more rows share, is not worth the attention of its own that every decode step
pays for it."""


class Prefix:
    """The first tokens of several prompts. `num_prefilled` of them are with the device; `num_users` rows hold it.

    It may begin with another prefix, its `base`, which more prompts share: it takes over what was computed for that.
    """

    __slots__ = ("base", "last_use", "num_prefilled", "num_users", "token_ids")

    def __init__(self, token_ids: tuple[int, ...], base: Prefix | None = None) -> None:
        self.token_ids = token_ids
        self.base = base
        self.num_prefilled = len(base) if base else 0
        self.num_users = 0
        self.last_use = 0

    def __repr__(self) -> str:
        return f"Prefix({self.num_prefilled}/{len(self)} tokens, {self.num_users} users)"

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def is_prefilled(self) -> bool:
        return self.num_prefilled == len(self.token_ids)

    def unfilled(self) -> list[Prefix]:
        """What is to be prefilled before a row can go on behind this prefix, in order."""
        return [prefix for prefix in reversed(list(self._chain())) if not prefix.is_prefilled]

    def _chain(self) -> Iterator[Prefix]:
        """This one, what it begins with, and so on. A long conversation has hundreds."""
        prefix: Prefix | None = self
        while prefix is not None:
            yield prefix
            prefix = prefix.base


def block_keys(prompt_ids: tuple[int, ...]) -> Iterator[int]:
    """A key for each run of blocks from the start; the last token stays out, since a row decodes from it. Prompts that
    have a key in common begin alike, unless two hashes collide."""
    key, length = 0, len(prompt_ids) - 1
    for start in range(0, length, BLOCK):
        key = hash((key, prompt_ids[start : min(start + BLOCK, length)]))
        yield key


class PrefixTable:
    """All prefixes, and how many of the rows at hand begin with each chain of blocks.

    Args:
        max_tokens: how many tokens all prefixes may hold together; 0 shares nothing.
        tokens_beside: as many tokens each of them counts more than it has.
    """

    def __init__(self, max_tokens: int, tokens_beside: int = 0) -> None:
        self._max_tokens = max_tokens
        self._tokens_beside = tokens_beside
        self._rows = Counter[int]()
        self._prefixes: dict[int, Prefix] = {}
        self._lengths: Mapping[int, int] | None = {}  # None: not known since the prefixes changed
        self._clock = count(1)

    def __repr__(self) -> str:
        return f"PrefixTable({self.num_tokens}/{self._max_tokens} tokens in {len(self._prefixes)})"

    @property
    def num_tokens(self) -> int:
        """Tokens of all prefixes."""
        return sum(map(self._size, self._prefixes.values()))

    @property
    def num_locked_tokens(self) -> int:
        """Tokens of the prefixes that are in use."""
        return sum(self._size(prefix) for prefix in self._prefixes.values() if prefix.num_users)

    @property
    def num_spare_tokens(self) -> int:
        """How many tokens a further prefix may have, now that some are in use."""
        return self._max_tokens - self.num_locked_tokens - self._tokens_beside

    @property
    def lengths(self) -> Mapping[int, int]:
        """The keys of all prefixes and their numbers of tokens, the longest first. A prompt among whose `beginnings` a
        key is begins with that prefix."""
        if self._lengths is None:
            lengths = {key: len(prefix) for key, prefix in self._prefixes.items()}
            self._lengths = dict(sorted(lengths.items(), key=lambda each: each[1], reverse=True))
        return self._lengths

    def beginnings(self, prompt_ids: tuple[int, ...]) -> dict[int, int]:
        """The keys of all that this prompt may share with others, and how many tokens each is, rising."""
        if not self._max_tokens:
            return {}
        keys = enumerate(block_keys(prompt_ids), start=1)
        lengths = {key: min(number * BLOCK, len(prompt_ids) - 1) for number, key in keys}
        return {
            key: length
            for key, length in lengths.items()
            if MIN_TOKENS <= length <= self._max_tokens - self._tokens_beside
        }

    def expect(self, prompt_ids: tuple[int, ...]) -> None:
        """A row with this prompt has come."""
        self._rows.update(block_keys(prompt_ids))

    def forget(self, prompt_ids: tuple[int, ...]) -> None:
        """A row with this prompt has ended."""
        for key in block_keys(prompt_ids):
            self._rows[key] -= 1
            if not self._rows[key]:
                del self._rows[key]

    def acquire(self, prompt_ids: tuple[int, ...]) -> Prefix | None:
        """The longest prefix that this prompt has in common with others, locked for one more row; `None` if it shares
        too little, or if there is no room for it beside the prefixes that are in use."""
        prefix = self._longest(prompt_ids[:-1], list(block_keys(prompt_ids)))
        if prefix is not None:
            self._hold(prefix)
        return prefix

    def num_sharing(self, prompt_ids: tuple[int, ...], prefix: Prefix) -> int:
        """How many rows that wait or run begin with this prefix, as this prompt does."""
        num_blocks = -(-len(prefix) // BLOCK)
        return self._rows[next(islice(block_keys(prompt_ids), num_blocks - 1, None))]

    def release(self, prefix: Prefix) -> None:
        """One row less uses this prefix."""
        prefix.num_users -= 1

    def take_evicted(self, num_spare_tokens: int = sys.maxsize) -> tuple[Prefix, ...]:
        """Drop what nobody uses and is over the limit, or more than there is room for; the runner can free it."""
        evicted, limit = [], min(self._max_tokens, num_spare_tokens)
        while self.num_tokens > limit:
            unused = [(prefix.last_use, key) for key, prefix in self._prefixes.items() if not prefix.num_users]
            if not unused:
                break
            prefix = self._prefixes.pop(min(unused)[1])
            self._lengths = None
            if prefix.base:
                self.release(prefix.base)
            evicted.append(prefix)
        return tuple(evicted)

    def clear(self) -> None:
        """Forget every row and every prefix."""
        self._rows.clear()
        self._prefixes.clear()
        self._lengths = {}

    def _longest(self, token_ids: tuple[int, ...], keys: Sequence[int]) -> Prefix | None:
        """The longest prefix of these tokens that is there already or is worth making because several rows share it."""
        base, worth_making = self._look_through(token_ids, keys)
        for num_blocks in reversed(worth_making):  # each on the longest base that more rows share
            room = self._max_tokens - self._tokens_beside - self._num_locked_beside(base)
            has_room = min(num_blocks * BLOCK, len(token_ids)) <= room
            num_blocks = num_blocks if has_room else max(0, room) // BLOCK
            shared = token_ids[: num_blocks * BLOCK]
            if len(shared) - (len(base) if base else 0) >= MIN_TOKENS:
                base = self._make(shared, keys[num_blocks - 1], base)
            if not has_room:
                break
        return base

    def _look_through(self, token_ids: tuple[int, ...], keys: Sequence[int]) -> tuple[Prefix | None, list[int]]:
        """The longest prefix of these tokens that is there already, and the longer ones that more than one row shares,
        each with more rows than the one before: in blocks, falling."""
        worth_making: list[int] = []
        num_rows = 1
        for num_blocks in range(len(keys), MIN_TOKENS // BLOCK - 1, -1):
            key = keys[num_blocks - 1]
            prefix = self._prefixes.get(key)
            if prefix is not None and prefix.token_ids == token_ids[: len(prefix)]:  # keys are only hashes
                return prefix, worth_making
            if prefix is None and self._rows[key] > num_rows:
                worth_making.append(num_blocks)
                num_rows = self._rows[key]
        return None, worth_making

    def _make(self, token_ids: tuple[int, ...], key: int, base: Prefix | None) -> Prefix:
        if base is not None:
            self._hold(base)
        prefix = self._prefixes[key] = Prefix(token_ids, base)
        self._lengths = None
        return prefix

    def _num_locked_beside(self, base: Prefix | None) -> int:
        """Tokens of the prefixes that are in use, or would be once another one is made on `base`."""
        return sum(self._size(prefix) for prefix in self._prefixes.values() if prefix.num_users or prefix is base)

    def _size(self, prefix: Prefix) -> int:
        return len(prefix) + self._tokens_beside

    def _hold(self, prefix: Prefix) -> None:
        prefix.num_users += 1
        prefix.last_use = next(self._clock)
