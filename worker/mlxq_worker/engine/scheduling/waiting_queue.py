"""The rows that wait for the batch, request by request, and which request is next.

The rows of a request enter one after another, with nobody between them. First goes a request whose prompt begins with a
prefix that is there already, the longest such prefix before others: what was computed for one prompt serves all that
begin like it before it has to make room. Then go those whose prompts have the most in common; among equals the request
that came first. With `longest_first` it is the longest prompt instead: that keeps long prompts out of the end of a run,
where they would decode with the batch half empty.

Requests that somebody waits for have a line of their own, first come first served; whether it is its turn, the caller
says (`live_share`).

So that no request waits for ever, requests compete in rounds: as many as may overtake each other, in the order in which
they came. Whoever comes once the round is full waits until all of it have gone. Plain Python; knows no prefixes, only
the keys of what a prompt begins with.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from mlxq_worker.engine.rows.group import RowGroup

_NONE: Mapping[int, int] = MappingProxyType({})
_LANDMARK_STEP = 1.33

MAX_OVERTAKEN = 511
"""No request is overtaken by more later ones than this: 16 full batches of the default width make up a round."""


@dataclass(slots=True, eq=False)
class WaitingRequest:
    """The groups of one request that wait: one for each answer, or a beam search.

    `beginnings` has a key for each beginning of its prompt that others may share, and how many tokens that is, rising;
    none, if it shares nobody's prefix. By those, whether a prefix is there is looked up. By its `landmarks`, a few of
    them, about two for each doubling, waiting prompts are compared with each other.
    """

    request_id: str
    num_prompt_tokens: int
    beginnings: Mapping[int, int]
    landmarks: Mapping[int, int] = field(init=False)
    groups: deque[RowGroup] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.landmarks, least = {}, 0.0
        for key, num_tokens in self.beginnings.items():
            if num_tokens >= least:
                self.landmarks[key] = num_tokens
                least = _LANDMARK_STEP * num_tokens


class WaitingQueue:
    """Requests in the order in which they came.

    Args:
        longest_first: take the longest prompt next, and not the first that came.
        max_overtaken: how many later requests may go before one at most; 0 keeps to the order in which they came.
    """

    def __init__(self, *, longest_first: bool = False, max_overtaken: int = MAX_OVERTAKEN) -> None:
        self._max_overtaken = max_overtaken
        self._longest_first = longest_first
        self._request_of: dict[RowGroup, WaitingRequest] = {}
        self._round: dict[WaitingRequest, None] = {}
        self._num_in_round = 0  # also those that have gone
        self._by_key: dict[int, dict[WaitingRequest, None]] = {}  # those of the round, by what they begin with
        self._shared: dict[int, int] = {}  # the tokens of those landmarks that several have
        self._later: deque[WaitingRequest] = deque()
        self._live: dict[WaitingRequest, None] = {}
        self._newest: WaitingRequest | None = None
        self._begun: WaitingRequest | None = None  # some of its rows have gone into the batch
        self.num_rows = 0

    def __len__(self) -> int:
        return len(self._request_of)

    def __iter__(self) -> Iterator[RowGroup]:
        """All groups, in the order in which they came."""
        return iter(self._request_of)

    @property
    def has_live(self) -> bool:
        """Whether a live request waits."""
        return bool(self._live)

    @property
    def has_bulk(self) -> bool:
        """Whether another one does."""
        return bool(self._round)

    def add(self, group: RowGroup, beginnings: Mapping[int, int] = _NONE) -> None:
        """Put a group at the end, beside those of its request if they came just before.

        Args:
            beginnings: what its prompt begins with, see `WaitingRequest`.
        """
        request_id = group.spec.row_id.request_id
        if self._newest is None or self._newest.request_id != request_id or not self._newest.groups:
            self._newest = WaitingRequest(request_id, len(group.spec.prompt_ids), beginnings)
            self._join(self._newest, is_live=group.spec.is_live)
        self._newest.groups.append(group)
        self._request_of[group] = self._newest
        self.num_rows += group.spec.num_rows

    def choose(
        self, prefixes: Mapping[int, int] = _NONE, num_spare_tokens: int = 0, *, live_first: bool = True
    ) -> RowGroup:
        """Who is next; there is somebody.

        Args:
            prefixes: the keys of the prefixes that are there, and their numbers of tokens, the longest first.
            num_spare_tokens: there is room for a further prefix of so many tokens.
            live_first: whether it is a live request's turn, where one waits.
        """
        if self._begun:
            return self._begun.groups[0]
        if self._live and (live_first or not self._round):
            return next(iter(self._live)).groups[0]
        found = next((key for key in prefixes if key in self._by_key), None)
        candidates = self._round if found is None else self._by_key[found]
        if not self._longest_first:
            candidates = self._most_alike(candidates, 0 if found is None else prefixes[found], num_spare_tokens)
        return self._first(candidates).groups[0]

    def choose_alone(self) -> RowGroup | None:
        """Who is next of those whose prompts have nothing in common with others that wait, if there is one."""
        # Who shares anything shares its first landmark.
        alone = [request for request in self._round if next(iter(request.landmarks), None) not in self._shared]
        return self._first(alone).groups[0] if alone else None

    def shared_with_others(self, group: RowGroup) -> tuple[int, int]:
        """How many tokens, about, its prompt has in common with others that wait, and how many requests those are, its
        own included."""
        landmarks = self._request_of[group].landmarks
        shared = [(num_tokens, len(self._by_key[key])) for key, num_tokens in landmarks.items() if key in self._shared]
        return max(shared, default=(0, 1))

    def num_tokens_there(self, group: RowGroup, prefixes: Mapping[int, int]) -> int:
        """How many tokens of its prompt are there, in the longest of these prefixes."""
        beginnings = self._request_of[group].beginnings
        return max((num_tokens for key, num_tokens in beginnings.items() if key in prefixes), default=0)

    def _first(self, candidates: Iterable[WaitingRequest]) -> WaitingRequest:
        if self._longest_first:
            return max(candidates, key=lambda request: request.num_prompt_tokens)
        return next(iter(candidates))

    def _most_alike(
        self, candidates: dict[WaitingRequest, None], num_there: int, num_spare_tokens: int
    ) -> dict[WaitingRequest, None]:
        """Those of the candidates for which a further prefix, beyond the tokens that are there, saves the most; all of
        them if there is room for none."""
        worth_making = (
            key
            for key, num_tokens in self._shared.items()
            if num_there < num_tokens <= num_spare_tokens and next(iter(self._by_key[key])) in candidates
        )
        best = max(
            worth_making, key=lambda key: (self._shared[key] - num_there) * (len(self._by_key[key]) - 1), default=None
        )
        return candidates if best is None else self._by_key[best]

    def admit(self, group: RowGroup) -> None:
        """A group goes into the batch; the others of its request are next."""
        request = self._request_of[group]
        self.discard(group)
        self._begun = request if request.groups else None

    def discard(self, group: RowGroup) -> None:
        """A group waits no longer."""
        request = self._request_of.pop(group)
        self.num_rows -= group.spec.num_rows
        request.groups.remove(group)
        if not request.groups:
            self._forget(request)

    def has_begun(self, group: RowGroup) -> bool:
        """Whether other rows of its request have gone into the batch."""
        return self._request_of[group] is self._begun

    def clear(self) -> None:
        """Forget everybody."""
        for group in list(self):
            self.discard(group)

    def _join(self, request: WaitingRequest, *, is_live: bool) -> None:
        if is_live:
            self._live[request] = None
            return
        self._later.append(request)
        if self._num_in_round <= self._max_overtaken:
            self._enter_round(self._later.popleft())

    def _enter_round(self, request: WaitingRequest) -> None:
        self._num_in_round += 1
        self._round[request] = None
        for key in request.beginnings:
            self._by_key.setdefault(key, {})[request] = None
        self._shared |= {key: num for key, num in request.landmarks.items() if len(self._by_key[key]) > 1}

    def _forget(self, request: WaitingRequest) -> None:
        if self._begun is request:
            self._begun = None
        if request in self._live:
            del self._live[request]
            return
        if request not in self._round:
            self._later.remove(request)
            return
        del self._round[request]
        for key in request.beginnings:
            alike = self._by_key[key]
            del alike[request]
            if len(alike) < 2:
                self._shared.pop(key, None)
            if not alike:
                del self._by_key[key]
        if not self._round:
            self._num_in_round = 0
            while self._later and self._num_in_round <= self._max_overtaken:
                self._enter_round(self._later.popleft())
