"""The rows of the batch in which a beam search's hypotheses lie, one in each.

A search takes as many rows as it is wide, which are one group. Its first row is prefilled; on every token a hypothesis
stays in the row of the one that it goes on from, or, where that has several followers, takes over what that row holds
(`Fork`). All running hypotheses are asked for together, and never ahead: what comes next depends on what came back.
They sit a step out while the engine runs ahead. `beam` decides; plain Python.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain, repeat

from mlxq.contract import Beam, StopDetails, StopType
from mlxq_worker.engine.api import AbortReason, Decode, RowError, RowResult, RowSpec, TokenScores
from mlxq_worker.engine.kvcache.prefix import Prefix
from mlxq_worker.engine.rows.beam import BeamSearch, Continuations, Hypothesis
from mlxq_worker.engine.rows.group import Fork, RowGroup
from mlxq_worker.engine.rows.row import Row


def new_group(spec: RowSpec, decode: Decode) -> RowGroup:
    """The rows for what is asked: one, or those of a beam search."""
    return RowGroup(Row(spec, decode)) if spec.beam is None else BeamGroup(spec, spec.beam, decode)


class BeamRow(Row):
    """A row of a beam search. `fork` says what it goes on from; it has none before it first holds a hypothesis, and
    holds one from then on, since a search never has fewer than before. It rests from being asked for a token until all
    those of the search have come."""

    __slots__ = ("_group", "fork")

    def __init__(self, spec: RowSpec, decode: Decode, group: BeamGroup) -> None:
        super().__init__(spec, decode)
        self._group = group
        self.fork: Fork | None = None
        self.is_unforeseen = True  # nobody knows which hypotheses go on

    @property
    def wants_token(self) -> bool:
        return not self.finished

    @property
    def is_resting(self) -> bool:
        return self.num_scheduled > len(self.token_ids)

    @property
    def is_due(self) -> bool:
        return self.fork is not None and not self.finished and not self.is_resting

    def commit(self, token_id: int, now: float, scores: TokenScores | None = None) -> None:
        """Take the continuations; the sampled token says nothing."""
        assert scores is not None, "a beam search's rows ask for scores"
        if self._first_token_s is None:
            self._first_token_s = now
        self._group.collect(self, scores.top, now)

    def fail(self, code: RowError, now: float) -> None:
        """No token can be chosen for it: there is nothing left to search among."""
        self._group.fail(code, now)

    def go_on(self, hypothesis: Hypothesis, source: Row) -> None:
        """Hold this hypothesis from now on, which goes on from that of `source`."""
        self.token_ids = list(hypothesis.token_ids)
        self.num_scheduled = len(self.token_ids)
        self.fork = Fork(self, source, self.token_ids[-1])


class BeamGroup(RowGroup):
    """One search and its rows."""

    __slots__ = ("_collected", "_decode", "_holders", "_results", "_rows", "_search", "_spec")

    is_search = True

    def __init__(self, spec: RowSpec, beam: Beam, decode: Decode) -> None:
        self._spec = spec
        self._decode = decode
        end_ids = frozenset(spec.end_tokens)
        self._search = BeamSearch(beam, end_ids=end_ids, limit=spec.limit, min_tokens=spec.min_tokens)
        # What the device is asked for. It samples as well, since it does for every row, but as cheaply as it can.
        row_spec = replace(
            spec, num_logprobs=self._search.num_continuations, temperature=0.0, min_tokens=0, stop=(), logit_bias={}
        )
        self._rows = [BeamRow(row_spec, decode, self) for _ in range(beam.width)]
        self._results: list[RowResult] | None = None
        super().__init__(*self._rows)
        self._holders = self._rows[:1]  # the rows in which the running hypotheses lie, in their order
        self._collected: dict[BeamRow, Continuations] = {}

    @property
    def spec(self) -> RowSpec:
        return self._spec

    @property
    def finished(self) -> bool:
        return self._results is not None

    @property
    def results(self) -> Sequence[RowResult]:
        return self._results or ()

    @property
    def due(self) -> Sequence[Row]:
        return [row for row in self._rows if row.is_due]

    @property
    def forks(self) -> Sequence[Fork]:
        return [row.fork for row in self._rows if row.is_due and row.fork]

    @property
    def resting(self) -> Sequence[Row]:
        return [row for row in self._rows if row.is_resting]

    def admit(self, now: float, prefixes: Iterable[Prefix | None], *, copies_prefix: bool = False) -> None:
        super().admit(now, prefixes, copies_prefix=copies_prefix)
        for row in self._rows[1:]:
            row.num_prefilled = len(row.spec.prompt_ids)  # a row that has computed it will be forked

    def collect(self, row: BeamRow, continuations: Continuations, now: float) -> None:
        """The continuations of one row's hypothesis have come; with the last ones the search goes on."""
        self._collected[row] = continuations
        if len(self._collected) < len(self._holders):
            return
        self._search.advance([self._collected[holder] for holder in self._holders])
        self._collected.clear()
        if self._search.is_over:
            self._end(self._search.best(self._spec.num_beams_returned), now)
        else:
            self._assign()

    def fail(self, code: RowError, now: float) -> None:
        """End the search because there is nothing to choose from."""
        self._end([], now, error_code=code)

    def abort(self, reason: AbortReason, now: float) -> None:
        """End the search before its time, keeping the best that it has."""
        self._end(self._search.best(self._spec.num_beams_returned), now, abort_reason=reason)

    def _assign(self) -> None:
        """Find a row for each running hypothesis. The first that goes on from another stays in its row."""
        sources = [self._holders[hypothesis.parent] for hypothesis in self._search.running]
        empty = [row for row in self._rows if row not in sources]
        self._holders = []
        for hypothesis, source in zip(self._search.running, sources, strict=True):
            row = empty.pop() if source in self._holders else source
            row.go_on(hypothesis, source)
            self._holders.append(row)

    def _end(
        self,
        hypotheses: Sequence[Hypothesis],
        now: float,
        *,
        abort_reason: AbortReason | None = None,
        error_code: RowError | None = None,
    ) -> None:
        """As many results as were asked for; where there are fewer hypotheses, the missing ones are errors, or empty if
        the search was ended before it had them."""
        assert self._results is None, f"{self._search!r} ended twice"
        each = zip(range(self._spec.num_beams_returned), chain(hypotheses, repeat(None)), strict=False)
        self._results = [
            self._result(index, hypothesis, now, abort_reason, error_code or "no_token_allowed")
            for index, hypothesis in each
        ]
        for row in self._rows:
            row.finished = True

    def _result(
        self,
        index: int,
        hypothesis: Hypothesis | None,
        now: float,
        abort_reason: AbortReason | None,
        error_code: RowError,
    ) -> RowResult:
        token_ids = hypothesis.token_ids if hypothesis else ()
        is_error = hypothesis is None and abort_reason is None
        ends = bool(token_ids) and token_ids[-1] in self._spec.end_tokens
        prefill_s, decode_s = self.first.durations(now)
        return RowResult(
            row_id=self._spec.row_id.answer(index),
            token_ids=token_ids,
            text=self._decode(token_ids[:-1] if ends else token_ids),
            stop_details=self._details(token_ids, "error" if is_error else abort_reason),
            num_prompt_tokens=len(self._spec.prompt_ids),
            seed=self._spec.seed,
            prefill_s=prefill_s,
            decode_s=decode_s,
            beam_score=self._search.score(hypothesis) if hypothesis else None,
            error_code=error_code if is_error else None,
        )

    def _details(self, token_ids: Sequence[int], cut_short: StopType | None) -> StopDetails:
        index = len(token_ids) - 1 if token_ids else None
        if cut_short is not None:
            return StopDetails(type=cut_short, token_index=index)
        if token_ids[-1] in self._spec.end_tokens:
            return self._spec.ended_on(token_ids[-1], len(token_ids) - 1)
        return StopDetails(type=self._spec.limit_type, token_index=index)
