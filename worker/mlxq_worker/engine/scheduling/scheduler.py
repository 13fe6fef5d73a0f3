"""Decides who is dropped, admitted, prefilled and decoded on a step, and gives rows the tokens that come back.

Plain Python over `Row` objects: no arrays, so every decision can be tested without a model. `waiting_queue`
says whose turn it is, `kvcache/budget` who fits.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from mlxq_worker.engine.api import AbortReason, RowError, RowId, RowPiece, RowResult, RowSpec, TokenScores
from mlxq_worker.engine.kvcache.budget import KvBudget
from mlxq_worker.engine.kvcache.prefix import Prefix, PrefixTable
from mlxq_worker.engine.plan import Plan, PrefillChunk, PrefixChunk
from mlxq_worker.engine.rows.group import Fork, RowGroup
from mlxq_worker.engine.rows.row import Row
from mlxq_worker.engine.scheduling.live_share import LiveShare
from mlxq_worker.engine.scheduling.waiting_queue import WaitingQueue

_NONE: Mapping[Any, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Admitted:
    """The prompts that one step let into the batch: their tokens, and those of them that others had computed."""

    num_tokens: int = 0
    num_shared: int = 0

    def plus(self, group: RowGroup) -> Admitted:
        """With one group more, whose rows have one prompt."""
        prefix = group.first.prefix
        num_shared = 0
        if prefix is not None:
            num_shared = len(prefix) - sum(len(each) - each.num_prefilled for each in prefix.unfilled())
        return Admitted(self.num_tokens + len(group.spec.prompt_ids), self.num_shared + num_shared)


class Scheduler:
    """The waiting queue and the running batch. `max_num_batched_tokens` and `budget` may change between two steps.
    Of the last one `admitted` is what it let in, and `has_filled_step` whether prompts had all the room that it had for
    them.

    Rows wait, enter and leave in groups. A group is *running* from its admission to its end. A row's room in the batch
    is free again once it wants no more tokens: one whose last permitted token is on its way frees it a step before it
    ends.

    Args:
        max_num_seqs: how many rows are in the batch at most.
        max_num_batched_tokens: how many tokens go through the model in one step, the decoding rows' included;
            longer prompts are prefilled over several steps. `None`: a row's prompt is prefilled on one step.
        max_prefix_tokens: how many tokens of shared prefixes are kept; 0 shares none.
        budget: what rows may take together; `None` for no bound.
        copies_prefix: whether rows had better copy a prefix into their own room than read it together, by how many rows
            share it, at most those of a batch, and how many tokens it has.
        longest_first: admit the longest prompts first, and not those that came first; in either case after those that
            begin with a prefix that is there.
    """

    def __init__(
        self,
        max_num_seqs: int,
        max_num_batched_tokens: int | None = None,
        max_prefix_tokens: int = 0,
        budget: KvBudget | None = None,
        *,
        copies_prefix: Callable[[int, int], bool] = lambda num_rows, num_tokens: False,
        longest_first: bool = False,
    ) -> None:
        self._max_num_seqs = max_num_seqs
        self.budget = budget
        self._copies_prefix = copies_prefix
        self.max_num_batched_tokens = max_num_batched_tokens
        self.has_filled_step = False
        self._prefixes = PrefixTable(max_prefix_tokens, budget.cost.tokens_beside_prefix if budget else 0)
        self._waiting = WaitingQueue(longest_first=longest_first)
        self._live_share = LiveShare()
        self._running: list[RowGroup] = []
        self._streaming: list[Row] = []  # of those that run
        self._max_running: int | None = None
        self.admitted = Admitted()
        self._num_running = 0
        self._num_spare_tokens: int | None = None  # for prefixes, beside the rows that run
        self._has_aborts = False
        self._next_check_s = math.inf  # nobody's allowance is used up before
        self._is_full = False  # nobody fits until a row ends or comes

    def __repr__(self) -> str:
        return f"Scheduler(running={self.num_running}/{self._max_num_seqs} waiting={self.num_waiting})"

    @property
    def num_running(self) -> int:
        """How many rows."""
        return self._num_running

    @property
    def num_waiting(self) -> int:
        """How many rows."""
        return self._waiting.num_rows

    @property
    def _num_free(self) -> int:
        """How many more rows the batch has room for."""
        num_free = self._max_num_seqs - sum(group.num_wanted for group in self._running)
        if self._max_running is None:
            return num_free
        return min(num_free, self._max_running - self.num_running)  # here a row has left only once it has ended

    def limit_rows(self, max_running: int | None) -> None:
        """Let nobody in while more rows run than this; `None` lifts the limit. What is alone always gets in."""
        if max_running != self._max_running:
            self._max_running = max_running
            self._is_full = False

    def add(self, group: RowGroup) -> None:
        """Put a group in the waiting queue."""
        shares = not group.first.wants_prompt_scores
        self._waiting.add(group, self._prefixes.beginnings(group.spec.prompt_ids) if shares else {})
        self._is_full = False
        for row in group.rows:
            self._prefixes.expect(row.spec.prompt_ids)

    def withdraw(self, row_ids: Collection[RowId] | None = None) -> list[RowSpec]:
        """Take out of the waiting queue, of these rows or of all, those of requests no row of which has started."""
        groups = [
            group
            for group in self._waiting
            if (row_ids is None or group.spec.row_id in row_ids) and not self._waiting.has_begun(group)
        ]
        for group in groups:
            self._waiting.discard(group)
            self._forget(group)
        self._is_full = False
        return [group.spec for group in groups]

    def abort(self, row_id: RowId, reason: AbortReason) -> None:
        """Mark a group to be dropped at the next `schedule`; the first reason stays."""
        for group in (*self._running, *self._waiting):
            if group.spec.row_id == row_id and group.abort_reason is None:
                group.abort_reason = reason
                self._has_aborts = True

    def schedule(self, now: float) -> tuple[Plan, list[RowResult]]:
        """Drop what was cancelled or is overdue, fill the free room, and plan the next step."""
        dropped = self._drop(now)
        self.admitted = Admitted()
        decoding: list[Row] = []
        forks: list[Fork] = []
        resting: list[Row] = []
        begun: deque[Row] = deque()
        for group in self._running:
            if due := group.due:
                decoding += due
            elif not group.first.is_prefilled:
                begun.append(group.first)
            if group.is_search:
                forks += group.forks
                resting += group.resting
        prefill, prefixes = self._prefill(begun, len(decoding), now)
        for row in (*decoding, *(chunk.row for chunk in prefill if chunk.is_last)):
            row.num_scheduled += 1
        return Plan(
            tuple(decoding), tuple(forks), tuple(prefill), tuple(prefixes), self._evicted(), tuple(resting)
        ), dropped

    def commit(
        self,
        rows: Sequence[Row],
        token_ids: Sequence[int],
        now: float,
        scores: Mapping[Row, TokenScores] = _NONE,
        errors: Mapping[Row, RowError] = _NONE,
    ) -> list[RowResult]:
        """Give each row the token that came back for it; rows that ended in the meantime discard theirs.

        Args:
            scores: of the tokens of those rows that ask for them.
            errors: the rows that no token could be chosen for; they end here.

        Returns:
            The results of the rows that this step ended.
        """
        has_ended = False
        for row, token_id in zip(rows, token_ids, strict=True):
            if row.finished:
                continue
            if errors and row in errors:
                row.fail(errors[row], now)
            else:
                row.commit(token_id, now, scores.get(row) if scores else None)
            has_ended |= row.finished
        return self._remove_ended(self._running) if has_ended else []

    def take_pieces(self) -> tuple[RowPiece, ...]:
        """What may be told of the rows that stream, since the last call."""
        if not self._streaming:
            return ()
        return tuple(piece for row in self._streaming for piece in row.take_pieces())

    def kv_usage(self) -> float:
        """The share of the budget that the running rows and their prefixes take; 0 without one."""
        if self.budget is None or self.budget.limit_bytes <= 0:
            return 0.0
        taken = self.budget.taken(_own_lengths(self.budget, self._running_rows()))
        return (taken + self.budget.cost.bytes_per_prefix_token * self._prefixes.num_locked_tokens) / (
            self.budget.limit_bytes
        )

    def clear(self) -> None:
        """Forget every row and every prefix."""
        self._waiting.clear()
        self._running.clear()
        self._streaming.clear()
        self._num_running = 0
        self._num_spare_tokens = None
        self._prefixes.clear()

    def _prefill(
        self, begun: deque[Row], num_decoding: int, now: float
    ) -> tuple[list[PrefillChunk], list[PrefixChunk]]:
        """Chunks of prompts for what the step has room for: rows that have `begun` first, then new ones; before a row's
        own tokens those of its prefix, if it is the first to use it."""
        chunks: list[PrefillChunk] = []
        prefix_chunks: list[PrefixChunk] = []
        self.has_filled_step = False
        if not (begun or self._waiting):
            return chunks, prefix_chunks
        num_free = self._num_free
        # At least one token even where the decoding rows fill the step, or a prompt would never get on.
        limit = self.max_num_batched_tokens
        room = sys.maxsize if limit is None else max(1, limit - num_decoding)
        while room > 0:
            if begun:
                row = begun.popleft()
            elif admitted := self._admit(num_free, now):
                row = admitted.first
                num_free -= admitted.spec.num_rows
            else:
                break
            for prefix in row.prefix.unfilled() if row.prefix else ():
                if room > 0:
                    prefix_chunks.append(PrefixChunk(prefix, *_prefill(prefix, len(prefix), room)))
                    room -= len(prefix_chunks[-1])
            if room > 0:
                chunks.append(PrefillChunk(row, *_prefill(row, len(row.spec.prompt_ids), room)))
                room -= len(chunks[-1])
        self.has_filled_step = room <= 0
        return chunks, prefix_chunks

    def _admit(self, num_free: int, now: float) -> RowGroup | None:
        """Let the next group into the batch, if there are enough free rows and it fits beside those that run."""
        if self._is_full or not self._waiting or (num_free <= 0 and self._running):
            return None
        group = self._next(num_free)
        if group is None or (group.spec.num_rows > num_free and self._running):
            return None
        joining = [(row, self._prefix_for(row)) for row in group.rows]
        copies = self._copies(group.first, joining[0][1])
        if not self._fits(joining, copies=copies):
            self._is_full = True
            for _, prefix in joining:
                if prefix:
                    self._prefixes.release(prefix)
            return None
        self._waiting.admit(group)
        group.admit(now, [prefix for _, prefix in joining], copies_prefix=copies)
        self._running.append(group)
        if group.spec.streaming is not None:
            self._streaming.append(group.first)
        self._live_share.entered(is_live=group.spec.is_live)
        self.admitted = self.admitted.plus(group)
        self._num_running += len(group.rows)
        self._num_spare_tokens = None
        if group.spec.timeout_s is not None:
            self._next_check_s = min(self._next_check_s, now + group.spec.timeout_s)
        return group

    def _next(self, num_free: int) -> RowGroup | None:
        """Who is next, if anybody had better enter now that so many rows are free."""
        group = self._waiting.choose(
            self._prefixes.lengths, self._prefixes.num_spare_tokens, live_first=self._is_live_next()
        )
        if group.spec.is_live or self._waiting.has_begun(group) or not self._pays_to_hold_back(group, num_free):
            return group
        return self._waiting.choose_alone()

    def _is_live_next(self) -> bool:
        """Whether a live request, if one waits, goes before others that wait."""
        if not (self._waiting.has_live and self._waiting.has_bulk):
            return True
        num_live = sum(len(group.rows) for group in self._running if group.spec.is_live)
        width = self._max_num_seqs if self._max_running is None else min(self._max_num_seqs, self._max_running)
        return self._live_share.is_live_next(num_live, self.num_running - num_live, width)

    def _pays_to_hold_back(self, group: RowGroup, num_free: int) -> bool:
        """Whether the group's prompt has a prefix in common with others that wait, there is no room for it, and there
        will be so soon that the rows of the batch that stay empty until then cost less than to compute that prefix for
        each of those. A row costs as much in a step as a token of a prompt."""
        num_shared, num_alike = self._waiting.shared_with_others(group)
        if num_shared <= self._prefixes.num_spare_tokens:
            return False
        num_there = self._waiting.num_tokens_there(group, self._prefixes.lengths)
        num_steps: dict[Prefix, int] = {}  # until each prefix is free, at the latest
        for row in (row for running in self._running for row in running.rows):
            if row.prefix:
                num_left = row.spec.limit - len(row.token_ids)
                num_steps[row.prefix] = max(num_left, num_steps.get(row.prefix, 0))
        num_saved = (num_shared - num_there) * min(num_alike, num_free)
        return num_free * min(num_steps.values(), default=sys.maxsize) < num_saved

    def _prefix_for(self, row: Row) -> Prefix | None:
        """The scores of a prompt's tokens come from computing them, so a row that wants them shares nobody's prefix."""
        return None if row.wants_prompt_scores else self._prefixes.acquire(row.spec.prompt_ids)

    def _copies(self, row: Row, prefix: Prefix | None) -> bool:
        """Whether a row that is about to enter had better have a copy of its prefix."""
        if prefix is None:
            return False
        num_sharing = self._prefixes.num_sharing(row.spec.prompt_ids, prefix)
        return self._copies_prefix(min(num_sharing, self._max_num_seqs), len(prefix))

    def _fits(self, joining: Iterable[tuple[Row, Prefix | None]], *, copies: bool) -> bool:
        """Whether the rows fit behind their prefixes, beside those that run and the prefixes in use. What runs alone
        always does: `BatchEngine.admit` asked."""
        if self.budget is None or not self._running:
            return True
        entering = ((row, 0 if copies or prefix is None else len(prefix)) for row, prefix in joining)
        lengths = _own_lengths(self.budget, [*self._running_rows(), *entering])
        return self.budget.fits(lengths, self._prefixes.num_locked_tokens)

    def _running_rows(self) -> list[tuple[Row, int]]:
        """Each with the number of its tokens that lie where all read them."""
        return [(row, row.num_elsewhere) for group in self._running for row in group.rows]

    def _evicted(self) -> tuple[Prefix, ...]:
        """The prefixes that have to go: they are kept only where there is room beside the rows."""
        if self.budget is None or not self._prefixes.num_tokens:
            return self._prefixes.take_evicted()
        if self._num_spare_tokens is None:
            self._num_spare_tokens = self.budget.spare_tokens(_own_lengths(self.budget, self._running_rows()))
        return self._prefixes.take_evicted(self._num_spare_tokens)

    def _drop(self, now: float) -> list[RowResult]:
        if not self._has_aborts and now < self._next_check_s:
            return []
        candidates = [*self._running, *(self._waiting if self._has_aborts else ())]
        for group in candidates:
            reason: AbortReason | None = group.abort_reason or ("deadline" if group.overdue(now) else None)
            if reason and not group.finished:
                group.abort(reason, now)
        if self._has_aborts:
            for group in [group for group in self._waiting if group.finished]:
                self._waiting.discard(group)
            self._has_aborts = False
        results = self._remove_ended(candidates)
        self._next_check_s = min((group.deadline_s for group in self._running), default=math.inf)
        return results

    def _remove_ended(self, groups: Iterable[RowGroup]) -> list[RowResult]:
        """The results of those groups that have ended; they leave the batch and their prefixes."""
        ended = [group for group in groups if group.finished]
        for group in ended:
            self._forget(group)
        if ended:
            self._running = [group for group in self._running if not group.finished]
            if self._streaming:
                self._streaming = [row for row in self._streaming if not row.finished]
            self._num_running = sum(len(group.rows) for group in self._running)
            self._num_spare_tokens = None
            self._is_full = False
        return [result for group in ended for result in group.results]

    def _forget(self, group: RowGroup) -> None:
        """The group has left: its rows share nothing any more."""
        for row in group.rows:
            self._prefixes.forget(row.spec.prompt_ids)
            if row.prefix:
                self._prefixes.release(row.prefix)


def _own_lengths(budget: KvBudget, rows: Iterable[tuple[Row, int]]) -> list[int]:
    """How many tokens each row may take room for, so many of whose lie elsewhere."""
    return [budget.own_length(row.spec.num_tokens, num_elsewhere) for row, num_elsewhere in rows]


def _prefill(what: Row | Prefix, length: int, room: int) -> tuple[int, int]:
    """Count up to `room` more of its `length` tokens as given to the device; returns where they start and stop."""
    start = what.num_prefilled
    what.num_prefilled = min(length, start + room)
    return start, what.num_prefilled
