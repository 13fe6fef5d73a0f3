"""One sequence of the batch: what is asked (`RowSpec`), its life (`Row`), and what came of it (`RowResult`).

A `Row` owns everything about one sequence, so nothing has to be kept in step with anything else. Plain Python:
no arrays, no queue. All times are seconds on the caller's monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mlxq.contract import Beam, RepetitionDetection, StopDetails, StopType
from mlxq_worker.engine.api import AbortReason, RowError
from mlxq_worker.engine.constraint import Constraint
from mlxq_worker.engine.kvcache.prefix import Prefix
from mlxq_worker.engine.reasoning import Reasoning, ReasoningState
from mlxq_worker.engine.rows.repetition import RepetitionWatch
from mlxq_worker.engine.rows.stop import StopScanner, TextStream

Decode = Callable[[Sequence[int]], str]
"""Token ids to text, special tokens left out."""

_LEAST_TEMPERATURE = 1e-5
_CHOICE_MARK = "#"


def choice_row_id(row_id: str, index: int) -> str:
    """The row id of a request's answer `index`: the first answer has the request's own."""
    return row_id if index == 0 else f"{row_id}{_CHOICE_MARK}{index}"


def request_row_id(row_id: str) -> str:
    """The request that a row belongs to: the row id of its first answer."""
    return row_id.partition(_CHOICE_MARK)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """Log probabilities in one place of a sequence, natural logarithm: of the token that stands there, its rank among
    all ids (1 is the most probable), and of the most probable ids as `(id, logprob)`, falling."""

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSpec:
    """A request made ready for the engine: tokenised, checked against the model, every default filled in.

    `prompt_ids` has at least one id, all inside the vocabulary; `len(prompt_ids) < context_length`.
    `end_tokens` maps every id that ends this row to its token text: the EOS set (unless `ignore_eos`) and the
    request's `stop_token_ids`. `eos_ids` says which of them belong to the EOS set (the rest are `stop_token`).
    `deadline_s` is an allowance of decode seconds, counted from the step that admits the row to the batch.

    `bad_words` are token sequences, none of which may be completed; all ids in `bad_words`, `logit_bias` and
    `allowed_token_ids` are inside the vocabulary. `num_logprobs` and `num_prompt_logprobs` are numbers of alternatives,
    `None` asks for no scores. With a `beam` the spec stands for a whole beam search; its `num_beams_returned` best
    hypotheses end on one step, with the row ids `choice_row_id(row_id, 0)`, `choice_row_id(row_id, 1)`, and so on.
    Inside `reasoning` no stop string is looked for; `None` if the model has no such part.
    """

    row_id: str
    prompt_ids: tuple[int, ...]
    max_tokens: int
    context_length: int
    end_tokens: Mapping[int, str]
    eos_ids: frozenset[int]
    seed: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    deadline_s: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    bad_words: tuple[tuple[int, ...], ...] = ()
    allowed_token_ids: frozenset[int] | None = None
    repetition_detection: RepetitionDetection | None = None
    reasoning: Reasoning | None = None
    constraint: Constraint | None = None
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
    beam: Beam | None = None
    num_beams_returned: int = 1

    @property
    def is_greedy(self) -> bool:
        """Whether the best token is taken. Below this temperature vLLM samples greedily too: dividing logits by it
        overflows."""
        return self.temperature < _LEAST_TEMPERATURE

    @property
    def has_penalties(self) -> bool:
        """Whether the tokens that the row has change what its next one may be worth."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1)

    @property
    def is_sampled_late(self) -> bool:
        """Whether a token can only be chosen once the row has all those before it."""
        return self.constraint is not None or self.has_penalties or any(len(word) > 1 for word in self.bad_words)

    @property
    def num_rows(self) -> int:
        """How many places of the batch it takes: a beam search one for each hypothesis that it follows."""
        return self.beam.width if self.beam else 1

    @property
    def num_tokens(self) -> int:
        """Prompt and answer together, if the answer gets as long as it may."""
        return len(self.prompt_ids) + self.limit

    @property
    def limit(self) -> int:
        """How many tokens the row may generate: `max_tokens`, or what is left of the context."""
        return min(self.max_tokens, self.context_length - len(self.prompt_ids))

    @property
    def limit_type(self) -> StopType:
        """Which limit that is; on a tie the request's own."""
        return "max_tokens" if self.limit == self.max_tokens else "context_length"

    def ended_on(self, token_id: int, index: int) -> StopDetails:
        """What is said of a sequence that ended on this end token."""
        kind: StopType = "eos_token" if token_id in self.eos_ids else "stop_token"
        return StopDetails(type=kind, token_id=token_id, token=self.end_tokens[token_id], token_index=index)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """How a row ended. `token_ids` holds every generated token, the end token included.

    `text` is what the request gets: without the end token, and cut at the stop string.
    `stop_details` says why; its `token_index` counts from 0. `prefill_s` runs from admission into the batch to
    the first token, `decode_s` from there to the end. `logprobs` has one entry for each of `token_ids`,
    `prompt_logprobs` one for each prompt token, the first of which follows nothing and is `None`. `error_code` goes
    with the type ``error``.
    """

    row_id: str
    token_ids: tuple[int, ...]
    text: str
    stop_details: StopDetails
    num_prompt_tokens: int
    seed: int
    prefill_s: float
    decode_s: float
    logprobs: tuple[TokenScores, ...] | None = None
    prompt_logprobs: tuple[TokenScores | None, ...] | None = None
    beam_score: float | None = None
    error_code: RowError | None = None


@dataclass(frozen=True, slots=True)
class Fork:
    """A row goes on from what `source`, itself or another row of the batch, has computed, with the token given."""

    row: Row
    source: Row
    token_id: int


class Row:
    """The life of one sequence: admitted, fed one token at a time by `commit`, ended exactly once.

    `num_prefilled` counts the prompt's tokens that the device has been given, those of a shared `prefix` included.
    `num_scheduled` counts the tokens asked of it, `token_ids` those that came back; the first runs at most one ahead
    of the second. `scores` has one entry for each of `token_ids` if the row asks for them; `prompt_scores` one for each
    prompt token but the first, as they are prefilled.
    """

    __slots__ = (
        "_admitted_s",
        "_decode",
        "_first_token_s",
        "_reasoning",
        "_repetition",
        "_scanner",
        "_stream",
        "abort_reason",
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
        self.abort_reason: AbortReason | None = None
        self.result: RowResult | None = None
        self._decode = decode
        # Text is followed token by token only where a stop string needs it; other rows are decoded once, at the end.
        self._stream = TextStream(decode) if spec.stop else None
        self._scanner = StopScanner(spec.stop)
        self._reasoning = ReasoningState(spec.reasoning) if spec.reasoning and spec.stop else None
        self._repetition = RepetitionWatch(spec.repetition_detection) if spec.repetition_detection else None
        self._admitted_s: float | None = None
        self._first_token_s: float | None = None

    def __repr__(self) -> str:
        end = self.result.stop_details.type if self.result else "running"
        return f"Row({self.spec.row_id} {len(self.token_ids)}/{self.spec.limit} {end})"

    @property
    def finished(self) -> bool:
        return self.result is not None

    @property
    def results(self) -> Sequence[RowResult]:
        """What the row reports when it has ended."""
        return () if self.result is None else (self.result,)

    @property
    def first(self) -> Row:
        """The row that stands for those that entered the batch as one."""
        return self

    @property
    def others(self) -> Sequence[Row]:
        """The rows that enter the batch with this one and are part of it."""
        return ()

    @property
    def fork(self) -> Fork | None:
        """Where the row has to be brought before it decodes, if not on from where it is."""
        return None

    @property
    def wants_token(self) -> bool:
        """Whether one more token should be asked of the device, now or later: not once the limit is on its way."""
        return not self.finished and self.num_scheduled < self.spec.limit

    @property
    def is_prefilled(self) -> bool:
        """Whether the whole prompt is with the device."""
        return self.num_prefilled == len(self.spec.prompt_ids)

    @property
    def wants_prompt_scores(self) -> bool:
        return self.spec.num_prompt_logprobs is not None

    @property
    def is_due(self) -> bool:
        """Whether a token can be asked of the device on this step."""
        return self.is_prefilled and self.wants_token

    @property
    def is_resting(self) -> bool:
        """Whether the row only keeps what it has computed on a step that it isn't due on."""
        return False

    @property
    def is_unforeseen(self) -> bool:
        """Whether what becomes of the row after its newest token could not be told before that was seen: it has ended,
        and not at its limit."""
        return self.finished and len(self.token_ids) < self.spec.limit

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

    def admit(self, now: float, prefix: Prefix | None = None) -> None:
        """The row enters the batch, behind a prefix that it shares: its clock starts."""
        self._admitted_s = now
        self.prefix = prefix
        self.num_prefilled = len(prefix) if prefix else 0

    def overdue(self, now: float) -> bool:
        """Whether the row has used up its allowance of decode seconds."""
        allowance, start = self.spec.deadline_s, self._admitted_s
        return allowance is not None and start is not None and now - start >= allowance

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
        is_end_token = token_id in self.spec.end_tokens
        at_limit = len(self.token_ids) >= self.spec.limit
        loops = self._loops()
        if self._stream and self._scan(self._stream, is_end_token or loops or at_limit, now):
            return
        if is_end_token:
            self._end_on_token(token_id, index, now)
        elif loops:
            self._end(StopDetails(type="repetition", token_index=index), self._full_text(), now)
        elif at_limit:
            self._end(StopDetails(type=self.spec.limit_type, token_index=index), self._full_text(), now)
        elif self.spec.constraint:
            self.spec.constraint.advance(token_id)

    def fail(self, code: RowError, now: float) -> None:
        """End the row because no token can be chosen for it, keeping the text it has."""
        self._end(StopDetails(type="error", token_index=self._newest_index), self._full_text(), now, code)

    def abort(self, reason: AbortReason, now: float) -> None:
        """End the row before its time, keeping the text it has."""
        self._end(StopDetails(type=reason, token_index=self._newest_index), self._full_text(), now)

    def _loops(self) -> bool:
        """Whether the newest token completes a loop; as in vLLM none counts before `min_tokens` tokens are there."""
        is_looping = self._repetition is not None and self._repetition.push(self.token_ids)
        return is_looping and len(self.token_ids) >= self.spec.min_tokens

    def _scan(self, stream: TextStream, is_last: bool, now: float) -> bool:
        """Follow the text by the newest token; end the row if that completes a stop string of the answer proper."""
        index = len(self.token_ids) - 1
        piece = stream.push(self.token_ids[index]) + (stream.flush() if is_last else "")
        if self._reasoning and self._reasoning.push(self.token_ids[index]):
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

    def durations(self, now: float) -> tuple[float, float]:
        """Seconds from admission to the first token, and from there to now."""
        admitted_s = self._admitted_s if self._admitted_s is not None else now
        first_token_s = self._first_token_s if self._first_token_s is not None else now
        return first_token_s - admitted_s, now - first_token_s

    def _all_prompt_scores(self) -> tuple[TokenScores | None, ...] | None:
        """One for each prompt token, unless the row ended before all were computed."""
        is_complete = len(self.prompt_scores) == len(self.spec.prompt_ids) - 1
        return (None, *self.prompt_scores) if self.wants_prompt_scores and is_complete else None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one `Engine.step` did. `rows_computed` counts the rows of this step's decode batch and `rows_useful`
    the tokens that were kept on it; the quotient of their sums over a run is `row_efficiency`.
    `free_rows` is how many more rows could decode at once right now. `num_prefilled` counts the tokens of prompts that
    it gave to the device. The engine is idle when nothing is running or waiting."""

    finished: tuple[RowResult, ...]
    num_running: int
    num_waiting: int
    free_rows: int
    rows_computed: int
    rows_useful: int
    num_prefilled: int = 0

    @property
    def has_advanced(self) -> bool:
        """Whether any row is further than before; an engine whose steps never advance hangs."""
        return bool(self.finished or self.rows_useful or self.num_prefilled)
