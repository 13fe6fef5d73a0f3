"""All that is outside `engine/` sees of it, MLX or fake: what a row asks for, what comes of it, and four methods.

Kept apart from the implementation so that the queue side, and its tests, never import mlx. Nothing else of `engine/` is
imported elsewhere, but by the one module that builds the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from mlxq.contract import Beam, RepetitionDetection, StopDetails, StopType
from mlxq_worker.engine.constraint import Constraint as Constraint
from mlxq_worker.engine.constraint import MaskBatch as MaskBatch
from mlxq_worker.engine.constraint import Words as Words
from mlxq_worker.engine.constraint import num_words as num_words
from mlxq_worker.engine.reasoning import Reasoning as Reasoning
from mlxq_worker.engine.reasoning import ReasoningState as ReasoningState
from mlxq_worker.engine.reasoning import TextMarkers as TextMarkers

Part = Literal["content", "reasoning"]
"""What a piece of an answer belongs to."""

Decode = Callable[[Sequence[int]], str]
"""Token ids to text, special tokens left out."""

AbortReason = Literal["cancelled", "deadline"]
"""Why a row was ended from outside; the words are `StopDetails.type`'s."""

RowError = Literal["nan_logits", "no_token_allowed"]
"""Why a row ended with the type ``error``: the model computed no number for it, or what the row asks for leaves it no
token to take."""

REPLACEMENT = "\ufffd"
"""What decoders put where bytes are not (yet) a character."""

_LEAST_TEMPERATURE = 1e-5


def most_live_rows(width: int) -> int:
    """How many rows of a batch that is so wide may be live ones while others wait: three quarters, and one at least."""
    return max(1, width * 3 // 4)


@dataclass(frozen=True, slots=True, order=True)
class RowId:
    """Answer `index` of a request. The rows of one request differ in nothing else."""

    request_id: str
    index: int = 0

    def __str__(self) -> str:
        return f"{self.request_id}#{self.index}"

    def answer(self, index: int) -> RowId:
        """The same request's answer `index`."""
        return replace(self, index=index)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """Log probabilities at one position of a sequence, natural logarithm: of its token, that token's rank among all ids
    (1 is the most probable), and of the most probable ids as `(id, logprob)`, falling."""

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()
    asked: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Streaming:
    """A row whose text is told while it grows. What a token of `unsettled_ids` has written may yet change with the next
    token: those that stand for single bytes, where a decoder reads several of them together."""

    unsettled_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPiece:
    """Text that a row has got since the last one, and that stands `start` characters behind the beginning of its part.
    All of a row's pieces join to the beginning of what its answer will be."""

    row_id: RowId
    part: Part
    start: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSpec:
    """A request made ready for the engine: tokenised, checked against the model, every default filled in.

    `prompt_ids` has at least one id, all inside the vocabulary; `len(prompt_ids) < context_length`.
    `end_tokens` maps every id that ends this row to its token text: the EOS set (unless `ignore_eos`) and the
    request's `stop_token_ids`. `eos_ids` says which of them belong to the EOS set (the rest are `stop_token`).
    `timeout_s` is an allowance of decode seconds, counted from the step that admits the row to the batch.

    `bad_words` are token sequences, none of which may be completed; all ids in `bad_words`, `logit_bias` and
    `allowed_token_ids` are inside the vocabulary. `num_logprobs` and `num_prompt_logprobs` are numbers of alternatives,
    `None` asks for no scores; those of `logprob_token_ids` are reported wherever those of the answer are. With a `beam`
    the spec stands for a whole beam search; its `num_beams_returned` best hypotheses end on one step, as the answers 0,
    1, and so on of its request. Inside `reasoning` no stop string is looked for; `None` if the model has no such part.
    For one that `is_live` somebody waits: it goes before others, see `mlxq_worker.engine.scheduling.live_share`. With
    `streaming` its text is reported as it grows.
    """

    row_id: RowId
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
    timeout_s: float | None = None
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
    logprob_token_ids: tuple[int, ...] = ()
    beam: Beam | None = None
    num_beams_returned: int = 1
    is_live: bool = False
    streaming: Streaming | None = None

    @property
    def answer_ids(self) -> tuple[RowId, ...]:
        """The ids of the results that will come of it."""
        first = self.row_id.index
        return tuple(self.row_id.answer(first + index) for index in range(self.num_beams_returned))

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
        """How many rows of the batch it takes: a beam search one for each hypothesis that it follows."""
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

    row_id: RowId
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


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one `Engine.step` did. `rows_computed` counts the rows of this step's decode batch and `rows_useful`
    the tokens that were kept on it; the quotient of their sums over a run is `row_efficiency`.
    `num_prefilled` counts the tokens of prompts that it gave to the device, `num_prompt_tokens` those of the prompts
    that entered the batch, and `num_shared_tokens` those of the latter that were computed for others already. `pieces`
    are of rows that stream and go on; what is left of one that has ended is in its result. The engine is idle when no
    row runs or waits."""

    finished: tuple[RowResult, ...]
    num_running: int
    num_waiting: int
    rows_computed: int
    rows_useful: int
    num_prefilled: int = 0
    num_prompt_tokens: int = 0
    num_shared_tokens: int = 0
    pieces: tuple[RowPiece, ...] = ()

    @property
    def has_advanced(self) -> bool:
        """Whether any row is further than before; an engine whose steps never advance hangs."""
        return bool(self.finished or self.rows_useful or self.num_prefilled)


class Engine(Protocol):
    """One batch of rows. Not thread-safe: one thread builds, steps and closes it.

    A `step` that raises leaves the batch unusable: `withdraw` what waits, `close` it and build another.
    """

    def admit(self, spec: RowSpec) -> None:
        """Put a row in the waiting queue; it joins the batch at a later `step`, in the engine's order. Rows of one
        request that are admitted one after another enter one after another.

        Raises:
            RequestError: the engine could never run it.
        """

    def step(self, now: float) -> StepReport:
        """Advance every running row, as a rule by one token, and report the rows that ended on this step.

        Args:
            now: seconds on a monotonic clock; deadlines and durations are measured with it.
        """

    def cancel(self, row_id: RowId, reason: AbortReason = "cancelled") -> None:
        """End a waiting or running row at the next `step`, keeping the text it has. Unknown ids are ignored:
        the row may have ended in the meantime."""

    def withdraw(self, row_ids: Collection[RowId] | None = None) -> tuple[RowSpec, ...]:
        """Take out of the waiting queue, of these rows or of all, those of requests no row of which has started.
        Nothing is reported of them.

        Returns:
            What they were admitted with, in that order.
        """

    def limit_rows(self, max_running: int | None) -> None:
        """Let nobody into the batch while more rows run than this; `None` lifts the limit. Those that run go on, and
        what would be alone always gets in."""

    def kv_usage(self) -> float:
        """How much of the memory for keys and values those that run have reserved, 1 being all of it."""

    def close(self) -> None:
        """Drop all rows and free what the batch holds."""
