"""The life of one sequence of the batch, from its `RowSpec` to its `RowResult`.

A `Row` owns everything about one sequence, so nothing has to be kept in step with anything else. Plain Python:
no arrays, no queue. All times are seconds on the caller's monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from mlxq.contract import StopDetails
from mlxq_worker.engine.api import AbortReason, Decode, RowError, RowPiece, RowResult, RowSpec, TokenScores
from mlxq_worker.engine.kvcache.prefix import Prefix
from mlxq_worker.engine.reasoning import ReasoningState
from mlxq_worker.engine.rows.live_text import LiveText
from mlxq_worker.engine.rows.repetition import RepetitionWatch
from mlxq_worker.engine.rows.stop import StopScanner, TextStream


class Row:
    """The life of one sequence: admitted, fed one token at a time by `commit`, ended exactly once.

    `num_prefilled` counts the prompt's tokens that the device has been given, those of a shared `prefix` included.
    With `copies_prefix` the row keeps a copy of that prefix, else it reads the one that all share.
    `num_scheduled` counts the tokens asked of it, `token_ids` those that came back; the first runs at most one ahead
    of the second. `scores` has one entry for each of `token_ids` if the row asks for them; `prompt_scores` one for each
    prompt token but the first, as they are prefilled. `is_unforeseen` says whether what becomes of the row after its
    newest token could not be told before that was seen: it has ended, and not at its limit.
    """

    __slots__ = (
        "_admitted_s",
        "_decode",
        "_first_token_s",
        "_is_followed",
        "_limit",
        "_live_text",
        "_num_prompt_tokens",
        "_reasoning",
        "_repetition",
        "_scanner",
        "_stream",
        "copies_prefix",
        "finished",
        "is_unforeseen",
        "num_prefilled",
        "num_scheduled",
        "prefix",
        "prompt_scores",
        "result",
        "scores",
        "spec",
        "token_ids",
    )

    def __init__(self, spec: RowSpec, decode: Decode) -> None:
        self.spec = spec
        self.token_ids: list[int] = []
        self.scores: list[TokenScores] = []
        self.prompt_scores: list[TokenScores] = []
        self.num_prefilled = 0
        self.num_scheduled = 0
        self.prefix: Prefix | None = None
        self.copies_prefix = False
        self.result: RowResult | None = None
        self.finished = False
        self.is_unforeseen = False
        self._limit = spec.limit
        self._num_prompt_tokens = len(spec.prompt_ids)
        self._decode = decode
        # Text is followed token by token only where a stop string needs it, or somebody who reads along; other rows are
        # decoded once, at the end.
        self._live_text = LiveText(spec, decode) if spec.streaming else None
        self._stream = TextStream(decode) if spec.stop or spec.streaming else None
        self._scanner = StopScanner(spec.stop)
        self._reasoning = ReasoningState(spec.reasoning) if spec.reasoning and self._follows_answer else None
        self._repetition = RepetitionWatch(spec.repetition_detection) if spec.repetition_detection else None
        # Whether a token may mean more to it than an end token or the limit.
        self._is_followed = self._follows_answer or spec.constraint is not None
        self._admitted_s: float | None = None
        self._first_token_s: float | None = None

    def __repr__(self) -> str:
        end = self.result.stop_details.type if self.result else "running"
        return f"Row({self.spec.row_id} {len(self.token_ids)}/{self.spec.limit} {end})"

    @property
    def wants_token(self) -> bool:
        """Whether one more token should be asked of the device, now or later: not once the limit is on its way."""
        return not self.finished and self.num_scheduled < self._limit

    @property
    def is_prefilled(self) -> bool:
        """Whether the whole prompt is with the device."""
        return self.num_prefilled == self._num_prompt_tokens

    @property
    def wants_prompt_scores(self) -> bool:
        return self.spec.num_prompt_logprobs is not None

    @property
    def is_due(self) -> bool:
        """Whether a token can be asked of the device on this step."""
        return not self.finished and self.num_scheduled < self._limit and self.num_prefilled == self._num_prompt_tokens

    @property
    def scheduled_position(self) -> int:
        """0-based index, among the generated tokens, of the newest one asked of the device."""
        return self.num_scheduled - 1

    @property
    def decode_position(self) -> int:
        """0-based index, in prompt and generated tokens together, of the token that the newest one follows."""
        return len(self.spec.prompt_ids) + self.scheduled_position - 1

    @property
    def masks_end_tokens(self) -> bool:
        """Whether that token falls under `min_tokens`, where no end token may be sampled."""
        return self.scheduled_position < self.spec.min_tokens

    @property
    def num_elsewhere(self) -> int:
        """How many of its tokens have no room of its own: those of a prefix that it reads where all do."""
        return len(self.prefix) if self.prefix and not self.copies_prefix else 0

    def admit(self, now: float, prefix: Prefix | None = None, *, copies_prefix: bool = False) -> None:
        """The row enters the batch, behind a prefix that it shares: its clock starts."""
        self._admitted_s = now
        self.prefix = prefix
        self.copies_prefix = copies_prefix and prefix is not None
        self.num_prefilled = len(prefix) if prefix else 0

    @property
    def deadline_s(self) -> float:
        """When the row, once it is in the batch, will have used up its allowance of decode seconds."""
        allowance, start = self.spec.timeout_s, self._admitted_s
        return math.inf if allowance is None or start is None else start + allowance

    def overdue(self, now: float) -> bool:
        """Whether it has."""
        return now >= self.deadline_s

    def commit(self, token_id: int, now: float, scores: TokenScores | None = None) -> None:
        """Take the next token, with its scores if the row asks for them, and end the row if this token ends it.

        Of several reasons on one token the stop string wins, then the end token, then the loop, then the limit.
        """
        if self._first_token_s is None:
            self._first_token_s = now
        self.token_ids.append(token_id)
        if scores:
            self.scores.append(scores)
        index = len(self.token_ids) - 1
        if not self._is_followed and index + 1 < self._limit and token_id not in self.spec.end_tokens:
            return  # as nearly all tokens of nearly all rows
        is_end_token = token_id in self.spec.end_tokens and self._ends_on(token_id)
        at_limit = index + 1 >= self._limit
        is_thought = self._reasoning is not None and self._reasoning.push(token_id)
        loops = self._repetition is not None and not is_thought and self._loops(self._repetition)
        if self._stream and self._scan(self._stream, is_thought, is_end_token or loops or at_limit, now):
            return
        if is_end_token:
            self._end_on_token(token_id, index, now)
        elif loops:
            self._end(StopDetails(type="repetition", token_index=index), self._full_text(), now)
        elif at_limit:
            self._end(StopDetails(type=self.spec.limit_type, token_index=index), self._full_text(), now)
        else:
            if self.spec.constraint:
                self.spec.constraint.advance(token_id)
            if self._live_text:
                self._live_text.push(self.token_ids, self._scanner.text, self._reasoning)

    def take_pieces(self) -> Iterator[RowPiece]:
        """What may be told of the answer since the last call, if it is one that streams and goes on."""
        if self._live_text and self.result is None:
            for part, start, text in self._live_text.take():
                yield RowPiece(row_id=self.spec.row_id, part=part, start=start, text=text)

    def fail(self, code: RowError, now: float) -> None:
        """End the row because no token can be chosen for it, keeping the text it has."""
        self._end(StopDetails(type="error", token_index=self._newest_index), self._full_text(), now, code)

    def abort(self, reason: AbortReason, now: float) -> None:
        """End the row before its time, keeping the text it has."""
        self._end(StopDetails(type=reason, token_index=self._newest_index), self._full_text(), now)

    def _ends_on(self, end_token_id: int) -> bool:
        """Whether an end token ends the row: inside a structure a stop token is one like any other until it is
        complete."""
        spec = self.spec
        return spec.constraint is None or end_token_id in spec.eos_ids or spec.constraint.is_complete

    @property
    def _follows_answer(self) -> bool:
        """Whether anything is looked for behind the reasoning part, token by token."""
        spec = self.spec
        return bool(spec.stop) or spec.repetition_detection is not None or spec.streaming is not None

    def _loops(self, repetition: RepetitionWatch) -> bool:
        """Whether the newest token completes a loop of the answer proper; as in vLLM none counts before `min_tokens`
        tokens are there."""
        num_thought_tokens = self._reasoning.num_tokens if self._reasoning else 0
        is_looping = repetition.push(self.token_ids, num_thought_tokens)
        return is_looping and len(self.token_ids) >= self.spec.min_tokens

    def _scan(self, stream: TextStream, is_thought: bool, is_last: bool, now: float) -> bool:
        """Follow the text by the newest token; end the row if that completes a stop string of the answer proper."""
        index = len(self.token_ids) - 1
        piece = stream.push(self.token_ids[index]) + (stream.flush() if is_last else "")
        if is_thought:
            self._scanner.pass_over(piece)
            return False
        match = self._scanner.push(piece, armed=index >= self.spec.min_tokens)
        if match is None:
            return False
        cut = match.end if self.spec.include_stop_str_in_output else match.start
        details = StopDetails(type="stop_string", string=match.string, token_index=index)
        self._end(details, self._scanner.text[:cut], now)
        return True

    def _end_on_token(self, token_id: int, index: int, now: float) -> None:
        details = self.spec.ended_on(token_id, index)
        self._end(details, self._decode(self.token_ids[:-1]), now)

    @property
    def _newest_index(self) -> int | None:
        return len(self.token_ids) - 1 if self.token_ids else None

    def _full_text(self) -> str:
        return self._decode(self.token_ids)

    def _end(self, details: StopDetails, text: str, now: float, error_code: RowError | None = None) -> None:
        assert self.result is None, f"{self!r} ended twice"
        prefill_s, decode_s = self.durations(now)
        self.result = RowResult(
            row_id=self.spec.row_id,
            token_ids=tuple(self.token_ids),
            text=text,
            stop_details=details,
            num_prompt_tokens=len(self.spec.prompt_ids),
            seed=self.spec.seed,
            prefill_s=prefill_s,
            decode_s=decode_s,
            logprobs=tuple(self.scores) if self.spec.num_logprobs is not None else None,
            prompt_logprobs=self._all_prompt_scores(),
            error_code=error_code,
        )
        self.finished = True
        self.is_unforeseen = len(self.token_ids) < self._limit

    def durations(self, now: float) -> tuple[float, float]:
        """Seconds from admission to the first token, and from there to now."""
        admitted_s = self._admitted_s if self._admitted_s is not None else now
        first_token_s = self._first_token_s if self._first_token_s is not None else now
        return first_token_s - admitted_s, now - first_token_s

    def _all_prompt_scores(self) -> tuple[TokenScores | None, ...] | None:
        """One for each prompt token, unless the row ended before all were computed."""
        is_complete = len(self.prompt_scores) == len(self.spec.prompt_ids) - 1
        return (None, *self.prompt_scores) if self.wants_prompt_scores and is_complete else None
