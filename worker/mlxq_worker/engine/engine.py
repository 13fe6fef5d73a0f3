"""The engine that decodes on MLX: one step is schedule, run, commit.

Implements `mlxq_worker.engine.api.Engine`. Holds no arrays itself and makes no decisions: the scheduler decides, the
runner computes, and the step in flight is a value that is passed on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from typing import Any

from mlxq_worker.engine.api import AbortReason, Decode, RowId, RowSpec, StepReport
from mlxq_worker.engine.kvcache import device
from mlxq_worker.engine.kvcache.budget import KvBudget
from mlxq_worker.engine.kvcache.gpu_costs import parts_pay
from mlxq_worker.engine.kvcache.memory import RELEASE_STEPS, in_flight_copies, measure_cost
from mlxq_worker.engine.rows.beam_group import new_group
from mlxq_worker.engine.runners.packed import PackedRunner
from mlxq_worker.engine.runners.padded import PaddedRunner, can_batch
from mlxq_worker.engine.runners.runner import Launched, Runner
from mlxq_worker.engine.runners.step_cost import measure_step
from mlxq_worker.engine.runners.step_timing import step_seconds
from mlxq_worker.engine.runners.trial import Packing, find_packing
from mlxq_worker.engine.sampling.batch_sampler import BatchSampler
from mlxq_worker.engine.scheduling.admission import check_fits, check_width
from mlxq_worker.engine.scheduling.run_ahead import RunAhead
from mlxq_worker.engine.scheduling.scheduler import Scheduler
from mlxq_worker.engine.scheduling.step_size import StepSize

DEFAULT_STEP_TOKENS = 512
NO_LIMIT = sys.maxsize


class BatchEngine:
    """A continuously refilled batch over one mlx-lm model.

    Decoding runs one step ahead where that pays: the device computes the next tokens while the last ones are looked at.
    A row that turns out to have ended was computed once too often, and that token is thrown away. Where what a row may
    sample depends on its last token, the forward pass runs ahead and the batch is sampled once that token is known.

    Args:
        model: an mlx-lm model.
        decode: token ids to text, special tokens left out.
        max_num_seqs: how many rows decode together at most; 1 for models whose caches can't be batched.
        max_num_batched_tokens: how many tokens, prompts' and decoding rows' together, go through the model in one step;
            longer prompts are prefilled over several steps. What is to be chosen here is shared by all engines of a
            model.
        kv_bytes: how much memory rows and their steps may take; by default there is no limit.
        max_prefix_bytes: how much of it prefixes that rows share may take, each of them once; 0 shares nothing, by
            default it is an eighth.
        longest_first: admit the longest prompts first, and not those that came first; in either case after those that
            begin with a prefix that is there.
        packed: false keeps to mlx-lm's own caches; slower, the oracle in tests.
        packing: what came of trying this model out before; by default it is tried out here.
        pipelined: true always runs ahead, false looks at every token before the next step starts; `None` does what
            pays.
        run_ahead: decides what pays, in `pipelined`'s place.
        new_sampler: makes what picks the tokens of an empty batch.
    """

    def __init__(
        self,
        model: Any,
        decode: Decode,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int | StepSize = DEFAULT_STEP_TOKENS,
        kv_bytes: int = NO_LIMIT,
        max_prefix_bytes: int | None = None,
        longest_first: bool = False,
        packed: bool = True,
        packing: Packing | None = None,
        pipelined: bool | None = None,
        run_ahead: RunAhead | None = None,
        new_sampler: Callable[[], BatchSampler] = BatchSampler,
    ) -> None:
        self._decode = decode
        self._device = device.Device()
        self._max_num_seqs = max_num_seqs
        packing = (packing or find_packing(model)) if packed else Packing(None, pads=can_batch(model))
        way = packing.way
        if isinstance(max_num_batched_tokens, int):
            max_num_batched_tokens = StepSize(max_num_batched_tokens)
        self._step_size = max_num_batched_tokens
        step_tokens = self._step_size.tokens(max_num_seqs) if way else self._step_size.known or DEFAULT_STEP_TOKENS
        self._budget = KvBudget(
            measure_cost(model, in_slabs=way is not None),
            kv_bytes,
            in_slabs=way is not None,
            copies_prefixes=bool(way and way.copies_prefixes),
            step=measure_step(model),
            step_tokens=step_tokens,
        )
        self._step_seconds = partial(step_seconds, model, way, num_rows=max_num_seqs) if way else None
        self._copies = in_flight_copies(model)
        self._runner: Runner
        if way:
            self._runner = PackedRunner(
                model,
                way,
                max_num_seqs=max_num_seqs,
                max_prefix_tokens=self._budget.prefix_tokens(max_prefix_bytes),
                new_sampler=new_sampler,
            )
        else:
            self._runner = PaddedRunner(
                model,
                batches=packing.pads,
                max_num_seqs=max_num_seqs,
                prefill_chunk=step_tokens,
                new_sampler=new_sampler,
            )
        self._scheduler = Scheduler(
            self._runner.max_num_seqs,
            step_tokens if way else None,
            self._runner.max_prefix_tokens,
            self._budget,
            copies_prefix=partial(copies_prefix, self._budget.cost.bytes_per_token / self._copies.num_layers),
            longest_first=longest_first,
        )
        self._run_ahead = run_ahead or RunAhead(pipelined, overlaps=device.is_gpu())
        self._in_flight: Launched | None = None
        self._num_steps = 0

    def __repr__(self) -> str:
        return f"BatchEngine({self._scheduler!r})"

    def admit(self, spec: RowSpec) -> None:
        """Put a row in the waiting queue; it joins the batch at a later `step`.

        Raises:
            RequestError: the row would not fit in memory even by itself, or its beam search is wider than the batch.
        """
        check_width(spec, self._runner.max_num_seqs, self._max_num_seqs)
        check_fits(spec, self._budget)
        self._scheduler.add(new_group(spec, self._decode))

    def cancel(self, row_id: RowId, reason: AbortReason = "cancelled") -> None:
        """End a waiting or running row at the next `step`, keeping the text it has."""
        self._scheduler.abort(row_id, reason)

    def withdraw(self, row_ids: Collection[RowId] | None = None) -> tuple[RowSpec, ...]:
        """Take out of the waiting queue, of these rows or of all, those of requests no row of which has started."""
        return tuple(self._scheduler.withdraw(row_ids))

    def limit_rows(self, max_running: int | None) -> None:
        """Let nobody into the batch while more rows run than this; `None` lifts the limit."""
        self._scheduler.limit_rows(max_running)

    def step(self, now: float) -> StepReport:
        """Advance every running row, as a rule by one token, and report the rows that ended on this step."""
        start, wait_s = time.perf_counter(), 0.0
        self._num_steps += 1
        if self._num_steps % RELEASE_STEPS == 0:
            self._device.release_unused()
        self._choose_step_size()
        plan, finished = self._scheduler.schedule(now)
        launched = self._runner.launch(plan)
        rows_computed = rows_useful = 0
        was_ahead = self._in_flight is not None
        for landing in self._landing(launched):
            since = time.perf_counter()
            tokens = landing.read()
            wait_s += time.perf_counter() - since
            running = [row for row in landing.rows if not row.finished]
            rows_computed += len(landing.rows)
            rows_useful += len(running)
            if tokens.errors:
                rows_useful -= len([row for row in running if row in tokens.errors])
            finished += self._scheduler.commit(landing.rows, tokens.token_ids, now, tokens.scores, tokens.errors)
            self._run_ahead.saw(len(running), len([row for row in running if row.is_unforeseen]))
        if self._in_flight:
            self._in_flight.sample()
        copy_s = self._copies.seconds(self._runner.num_slab_tokens * self._budget.cost.bytes_per_token)
        self._run_ahead.took(time.perf_counter() - start - wait_s, wait_s, was_ahead=was_ahead, copy_s=copy_s)
        return StepReport(
            finished=tuple(finished),
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            rows_computed=rows_computed,
            rows_useful=rows_useful,
            num_prefilled=plan.num_prefilled,
            num_prompt_tokens=self._scheduler.admitted.num_tokens,
            num_shared_tokens=self._scheduler.admitted.num_shared,
            pieces=self._scheduler.take_pieces(),
        )

    def _choose_step_size(self) -> None:
        """Once prompts have filled a step, and none of an engine before has chosen."""
        if self._step_seconds and self._step_size.known is None and self._scheduler.has_filled_step:
            step_tokens = self._step_size.choose(self._step_seconds, self._max_num_seqs)
            self._scheduler.max_num_batched_tokens = step_tokens
            self._scheduler.budget = self._budget = replace(self._budget, step_tokens=step_tokens)

    def _landing(self, launched: Launched | None) -> list[Launched]:
        """The steps to look at now that `launched` is on its way: the one before it, and where running ahead doesn't
        pay, itself."""
        before, self._in_flight = self._in_flight, launched if self._run_ahead.pays else None
        return [step for step in (before, launched) if step is not None and step is not self._in_flight]

    def kv_usage(self) -> float:
        """How much of the memory for keys and values those that run have reserved, 1 being all of it."""
        return self._scheduler.kv_usage()

    def close(self) -> None:
        """Drop all rows and free what the batch holds."""
        self._in_flight = None
        self._scheduler.clear()
        self._runner.clear()


def copies_prefix(layer_bytes_per_token: float, num_rows: int, num_tokens: int) -> bool:
    """Whether so many rows had better copy a prefix of so many tokens than read it together, which costs a GPU its
    fused attention."""
    return device.is_gpu() and not parts_pay(num_rows, num_tokens, layer_bytes_per_token)
