"""The two files of one run: answers go to the output file, failures to the error file.

The output file is the durable state, so a rerun adds to it and skips what it holds whole; whatever was cut off or
failed is tried again, and its new outcome takes the place of the old one. Knows nothing of where lines come from.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from mlxq.files.input import BadLine
from mlxq.files.known_lines import KnownBlock, KnownLines
from mlxq.files.output.continuation import can_be_continued
from mlxq.files.output.done import Done, done_by, load_done, parts_in
from mlxq.files.output.error_file import ErrorFile
from mlxq.files.output.result_file import check_result_file, open_writer
from mlxq.files.output.retry import Retry
from mlxq.files.output.retry_pass import RetryPass
from mlxq.files.output.rewriting import order_file
from mlxq.files.output.same_model import Expected, SameModel
from mlxq.files.tally import Summary, Tally
from mlxq.formats.names import TABLES, named
from mlxq.requests.normal_form import spelled_hash
from mlxq.requests.openai import ParsedLine
from mlxq.results.read_back import is_success
from mlxq.results.result_lines import failure_line
from mlxq.storage.id_table import IdTable

SYNC_S = 1.0


def default_error_file(output: Path) -> Path:
    """``out.jsonl``, ``out.jsonl.gz`` and ``out.csv`` -> ``out.errors.jsonl``."""
    name = named(output)
    plain = output.with_suffix("") if name.packing else output
    suffix = ".jsonl" if name.format in TABLES else plain.suffix
    return plain.with_name(f"{plain.stem}.errors{suffix or '.jsonl'}")


class Sink:
    """Writes every line to the file it belongs in, and counts it. Use it as a context manager.

    Args:
        output: the file of answers.
        error_file: the file of failures; there is none afterwards if it would be empty.
        resume: keep and skip what the output file already holds; otherwise both files start empty.
        source: a name for the input, as of `mlxq.files.paths.source_name`.
        default_max_tokens: the limit of a request that sets none, where that is known.
        sampling_defaults: what the model's own fill in of a request that leaves it out, where that is known.
        retry: which whole answers are to be asked for again.
        expected: the model whose answers are to be gone on from; any, if none is expected.
        known: learns the input lines that the output file has the answers to.

    Raises:
        InputFileError: a file can't be used, or another run is using it.
        ConfigError: the output file holds answers by another model, or by one with other end tokens.
    """

    def __init__(
        self,
        output: Path,
        error_file: Path,
        *,
        resume: bool = True,
        source: str | None = None,
        default_max_tokens: int | None = None,
        sampling_defaults: Mapping[str, float] | None = None,
        retry: Retry | None = None,
        expected: Expected | None = None,
        known: KnownLines | None = None,
    ) -> None:
        self.tally = Tally()
        self._known_lines = KnownLines() if known is None else known  # an empty one is false
        self._retried: dict[str, int | None] = {}  # limits of requests that are asked again
        self._output_path = output
        self._order: Iterable[str] | None = None
        self._dropped = IdTable()
        self._num_asked = 0
        self._pass_is_over = False
        self._default_max_tokens = default_max_tokens
        self._sampling_defaults = sampling_defaults
        self._synced = time.monotonic()
        check_result_file(error_file)  # before the output file comes into being
        with ExitStack() as stack:
            self._output = stack.enter_context(open_writer(output, keep=resume))
            self._pass = RetryPass.begin(output, retry or Retry(), keep=resume)
            self._errors = stack.enter_context(ErrorFile(error_file, keep=resume, source=source))
            self._done = load_done(output, self._known_lines, stands=self._stands)
            self._parts = parts_in(output) if self._pass.retry.goes_on else IdTable()
            self._same_model = SameModel(output, expected, self._done.models, self._done.ends)
            # A run that was killed may have left two lines for one id.
            self._needs_rewrite = self._done.num_lines != len(self._done)
            self._writers = stack.pop_all()

    def skip_if_done(self, custom_id: str, content_hash: str | None) -> bool:
        """Whether the output file already held the whole answer to this very request; if so, count it as skipped."""
        known = self._known(custom_id)
        return known is not None and known.content_hash == content_hash and self._skip(custom_id, known)

    def skip_request(self, line: ParsedLine) -> bool:
        """`skip_if_done` for a request that may be spelled otherwise than the one that was answered."""
        custom_id = line.request.custom_id
        known = self._known(custom_id)
        if known is None or not self._answers(known, line) or self._is_retried(line, known):
            return False
        return self._skip(custom_id, known)

    def skip_block(self, block: KnownBlock) -> None:
        """Count lines whose whole answers were known without reading them."""
        self._num_asked += len(block.custom_ids)
        for model, count in block.models.items():
            self.tally.skip(model, count)
        self._errors.settle_all(block.custom_ids)

    def _stands(self, known: Done) -> bool:
        """Whether a whole answer is still one to the same line, whatever that says."""
        same = self._may_have_same_limit(known) and self._may_have_same_defaults(known)
        return same and not self._pass.wants(known)

    def _may_have_same_limit(self, known: Done) -> bool:
        """Whether a request without a limit of its own kept to the one that it would have now, as far as is known."""
        return len({known.default_max_tokens, self._default_max_tokens} - {None}) <= 1

    def _may_have_same_defaults(self, known: Done) -> bool:
        """Whether nothing speaks against it. The mark of its line says that a run has expected them."""
        filled, now = known.sampling_defaults, self._sampling_defaults
        return filled is None or now is None or (filled.items() <= now.items() and bool(filled) == bool(now))

    def limit_of_retry(self, custom_id: str) -> int | None:
        """The larger limit with which a request is to be asked again; `None` if it is asked as it is."""
        return self._retried.get(custom_id)

    def part_of(self, custom_id: str) -> dict[str, Any] | None:
        """The output line whose text is to be gone on with; `None` for a request that is asked from its beginning."""
        data = self._parts.get(custom_id) if custom_id in self._retried else None
        return None if data is None else msgspec.json.decode(data)

    def _is_retried(self, line: ParsedLine, known: Done) -> bool:
        if known.is_cut or not self._pass.wants(known):
            return False
        if self._pass.retry.goes_on and known.hit_limit:
            if not (line.request.custom_id in self._parts and can_be_continued(line)):
                return False
            self._retried[line.request.custom_id] = None
            return True
        limits = (known.raised_max_tokens, line.request.sampling.max_tokens, known.default_max_tokens)
        last = next((limit for limit in (*limits, self._default_max_tokens) if limit is not None), None)
        limit = self._pass.retry.limit_after(known, last)
        if limit is not None and last is not None and limit <= last:
            return False  # it has had the largest one
        self._retried[line.request.custom_id] = limit
        return True

    def _known(self, custom_id: str) -> Done | None:
        known = self._done.get(custom_id)
        self._num_asked += known is not None
        return known

    def _answers(self, known: Done, line: ParsedLine) -> bool:
        if line.request.sampling.max_tokens is None and not self._may_have_same_limit(known):
            return False
        if not self._has_same_defaults(known, line.request.left_out):
            return False
        if known.content_hash == line.request.content_hash:
            return True
        return known.content_hash == spelled_hash(line.payload["url"], line.payload["body"])

    def _has_same_defaults(self, known: Done, left_out: tuple[str, ...]) -> bool:
        """Whether the model's defaults filled in what they would now. Lines of earlier releases don't say."""
        filled = known.sampling_defaults
        if filled is None:
            return True
        if known.raised_max_tokens is not None:  # a retry's own limit, in place of any other
            left_out = tuple(name for name in left_out if name != "max_tokens")
        if self._sampling_defaults is None:
            return filled.keys() <= set(left_out)
        return filled == {name: value for name, value in self._sampling_defaults.items() if name in left_out}

    def _skip(self, custom_id: str, known: Done) -> bool:
        if known.is_cut:
            return False
        self.tally.skip(known.model)
        self._errors.settle(custom_id)
        return True

    def adopt(self, line: Mapping[str, Any]) -> bool:
        """Write an answer that an earlier run had asked for; it counts as skipped when its request comes. `False` if it
        isn't a whole one, or not to what the answer that is there is to, and so is not written."""
        if self._pass.is_resumed:
            line = {**line, "mlxq": self._pass.about_line()}
        custom_id, answer = line["custom_id"], done_by(line)
        if answer is None or answer.is_cut:
            return False
        known = self._done.get(custom_id)
        # It may be the rest of that answer, or a retry with a larger limit: none by itself, or to another request.
        if known is not None and not known.is_cut and known.content_hash != answer.content_hash:
            return False
        self._same_model.check(line)
        if known != answer:
            if known is not None:
                self._needs_rewrite = True
                self._known_lines.void()
            self._output.append(line)
            self._errors.settle(custom_id)
            self._done.put(custom_id, answer)
        return True

    def write(
        self, line: Mapping[str, Any], place: str | None = None, mark: str | None = None, *, replaces: bool = False
    ) -> None:
        """Write one output line. It stands, after `close`, for all that the output file held under its id. `place` is
        where its request stands, if it is not known by its id; `mark` is that of its input line. It `replaces` one that
        was written since the file was opened.

        Raises:
            ConfigError: it is by a model that has other end tokens than when it gave the answers that were there.
        """
        self._same_model.check(line)
        self.tally.add(line, place)
        known = self._done.get(line["custom_id"])
        self._needs_rewrite |= known is not None or replaces
        is_retry = line["custom_id"] in self._retried
        if is_retry:
            del self._retried[line["custom_id"]]
            self.tally.retried += 1
        else:
            self.tally.changed += known is not None and not known.is_cut
        if is_success(line):
            about = {**({} if mark is None else {"line": mark}), **self._pass.about_line()}
            self._output.append({**line, "mlxq": about} if about else line)
            self._errors.settle(line["custom_id"])
        else:
            self._errors.append(line)
            if not is_retry:  # the answer that is there is still one to the request
                self._dropped.add(line["custom_id"])

    def refuse(self, bad: BadLine) -> None:
        """Write the failure of an input line that was refused."""
        line, place = failure_line(bad.failure()), bad.place
        if bad.owns_id:
            self._num_asked += bad.custom_id in self._done
            self.write(line, place)
        else:  # the answer to another line with this id is to stay
            self.tally.add(line, place)
            self._errors.append(line)

    def settle_source(self) -> None:
        """Every request of the input has an outcome: old failures of that input which are left are of none of them, and
        a pass of retries is over."""
        self._errors.settle_source()
        self._pass_is_over = True

    def sync(self) -> None:
        """Force what was written to the disk."""
        self._output.sync()
        self._errors.sync()
        self._synced = time.monotonic()

    def sync_if_due(self) -> bool:
        """`sync` if the last one was a second or more ago; says whether it did."""
        if time.monotonic() - self._synced < SYNC_S:
            return False
        self.sync()
        return True

    def summary(self, *, interrupted: bool = False) -> Summary:
        """What came of the run. Only one that was not interrupted knows which lines nobody asked for."""
        unasked = 0 if interrupted else len(self._done) - self._num_asked
        unasked_failures = 0 if interrupted else self._errors.num_unsettled
        return self.tally.summary(interrupted=interrupted, unasked=unasked, unasked_failures=unasked_failures)

    def order_by(self, custom_ids: Iterable[str]) -> None:
        """Have `close` rewrite the output file in this order; other ids follow behind."""
        self._order = custom_ids

    def close(self) -> None:
        """Sync, and rewrite the files where they are to be ordered or have stale lines."""
        self._writers.close()
        if self._needs_rewrite or self._order is not None:
            order_file(self._output_path, self._order or (), without=self._dropped)
        if self._pass_is_over:
            self._pass.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._writers.__exit__(kind, error, traceback)
