"""What a result file says is done: which requests have an answer there, and to what.

Kept on the disk, so that it takes no memory to speak of. Knows no requests that are still to be run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from mlxq.files.known_lines import MADE_UP, Known, KnownLines, Marked, made_up_id
from mlxq.files.output.continuation import can_go_on
from mlxq.files.output.same_model import Ends, ends_of
from mlxq.files.output.stored import read_as, read_lines
from mlxq.results import read_back
from mlxq.storage.id_table import IdTable, is_text

LINES_AT_ONCE = 500


class Done(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An answer in a result file: the hash of the request it answers, and the name of the model it is by.

    One that `is_cut` is there in part, so its request is not done. `default_max_tokens` is the worker's limit that the
    answer kept to, where its request has none and the line says so; `raised_max_tokens` is the one of a retry.
    `sampling_defaults` is what the model's own have filled in of the request, `None` where the line doesn't say.
    `retry_pass` names the pass of retries that asked for it, if one did (`mlxq.files.output.retry_pass`).
    `finish_reasons` are those of its choices, and `hit_limit` tells whether one of them had `max_tokens` tokens.
    """

    content_hash: str
    model: str | None
    is_cut: bool = False
    default_max_tokens: int | None = None
    finish_reasons: tuple[str, ...] = ()
    hit_limit: bool = False
    raised_max_tokens: int | None = None
    sampling_defaults: dict[str, float] | None = None
    retry_pass: str | None = None


class DoneTable:
    """The answers of a result file by custom id. `num_lines` are the lines that it has, of all kinds; `models` and
    `ends` count by whom its answers are, and on what they could end, those among them whose place others took."""

    def __init__(self) -> None:
        self.num_lines = 0
        self.models: Counter[str | None] = Counter()
        self.ends: Counter[Ends] = Counter()
        self._table = IdTable()
        self._encoder, self._decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(Done)

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, custom_id: str) -> bool:
        return custom_id in self._table

    def get(self, custom_id: str) -> Done | None:
        """The answer to a request; `None` if there is none."""
        data = self._table.get(custom_id)
        return None if data is None else self._decoder.decode(data)

    def put(self, custom_id: str, done: Done) -> None:
        """This answer is there now."""
        self.models[done.model] += 1
        self._table.put(custom_id, self._encoder.encode(done))

    def put_many(self, answers: Sequence[tuple[str, Done]]) -> None:
        """`put` for each of them; the last one of an id counts."""
        self.models.update([done.model for _, done in answers])
        self._table.put_many([(custom_id, self._encoder.encode(done)) for custom_id, done in answers])

    def items(self) -> Iterator[tuple[str, Done]]:
        """All ids with their answers, by id."""
        return ((custom_id, self._decoder.decode(data)) for custom_id, data in self._table.items())


def load_done(
    path: Path | str, known: KnownLines | None = None, *, stands: Callable[[Done], bool] = lambda _: True
) -> DoneTable:
    """The answers in a result file. Later lines win; a missing file is empty.

    Args:
        known: learns the input lines whose answers need not be looked at any further.
        stands: says of a whole answer whether it is one of these.

    Raises:
        InputFileError: the file can't be read, or a line other than a cut-off last one is not an output line.
    """
    table = DoneTable()
    lines = iter(read_as(path, read_outcome) if Path(path).is_file() else ())
    while outcomes := list(islice(lines, LINES_AT_ONCE)):
        table.num_lines += len(outcomes)
        answers = [(outcome.custom_id, outcome.done) for outcome in outcomes if outcome.done is not None]
        table.put_many(answers)
        table.ends.update([outcome.ends for outcome in outcomes if outcome.ends is not None])
        if known is not None:
            known.put_many([pair for outcome in outcomes if (pair := _known_by(outcome, stands)) is not None])
    if known is not None and len(table) < table.num_lines:
        known.void()  # a mark may be that of an answer which another has replaced
    return table


def parts_in(path: Path) -> IdTable:
    """The output lines of a result file whose answers can be gone on with, as JSON by id; later lines win."""
    parts = IdTable()
    for line in read_lines(path) if path.is_file() else ():
        if can_go_on(line):
            parts.put(line["custom_id"], msgspec.json.encode(line))
        else:
            parts.discard(line["custom_id"])
    return parts


class LineOutcome(NamedTuple):
    """What an output line says of a request, for a rerun: `done` is `None` if it is no answer by mlxq, nor a part of
    one; `mark` is that of the input line (`mlxq.files.known_lines`), where it has one; `ends` on what the answer could
    end, where it says so."""

    custom_id: str
    done: Done | None = None
    mark: str | None = None
    ends: Ends | None = None


def read_outcome(data: bytes) -> LineOutcome | None:
    """The outcome on a line; `None` if it is no output line, or only a part of one."""
    try:
        line = _DECODER.decode(data)
    except (ValueError, RecursionError):  # another program's, or it is none
        plain = read_back.decode_output_line(data)
        return None if plain is None else LineOutcome(plain["custom_id"], done_by(plain), ends=ends_of(plain))
    if line.response is None and line.error is None:
        return None
    answer = _answer_on(line)
    return LineOutcome(line.custom_id, *answer) if answer else LineOutcome(line.custom_id)


def done_by(line: Mapping[str, Any]) -> Done | None:
    """What an output line has done, for a rerun; `None` if it is no answer by mlxq, nor a part of one."""
    content_hash = read_back.content_hash_of(line)
    if content_hash is None or not read_back.is_success(line):
        return None
    reasons = (choice.get("finish_reason") for choice in read_back.choices_of(line))
    return Done(
        content_hash,
        read_back.model_of(line),
        is_cut=read_back.is_cut(line),
        default_max_tokens=read_back.default_max_tokens_of(line),
        finish_reasons=tuple(reason for reason in reasons if isinstance(reason, str)),
        hit_limit=any(stop.get("type") == "max_tokens" for stop in read_back.stop_details_of(line)),
        raised_max_tokens=read_back.raised_max_tokens_of(line),
        sampling_defaults=read_back.sampling_defaults_of(line),
        retry_pass=read_back.retry_pass_of(line),
    )


# --- The same of the lines that mlxq writes itself, without making objects of what isn't needed -----------------


class _Stop(Struct, gc=False):
    type: str | None = None


class _Choice(Struct, gc=False):
    finish_reason: str | None = None
    stop_details: _Stop | None = None


class _About(Struct, gc=False):
    content_hash: str
    eos: msgspec.Raw = msgspec.Raw()
    ignore_eos: bool | None = None
    default_max_tokens: int | None = None
    raised_max_tokens: int | None = None
    generation_config: str | None = None
    sampling_defaults: dict[str, int | float] | None = None


class _Body(Struct, gc=False):
    object: str | None = None
    model: str | None = None
    choices: list[_Choice] = []
    mlxq: _About | None = None


class _Response(Struct, gc=False):
    status_code: int | None = None
    body: _Body | None = None


class _AboutLine(Struct, frozen=True, gc=False):
    line: str | None = None
    retry: str | None = None


class _Line(Struct, gc=False):
    custom_id: str
    response: _Response | None = None
    error: Any = None
    mlxq: _AboutLine = _AboutLine()


_DECODER = msgspec.json.Decoder(_Line)


def _answer_on(line: _Line) -> tuple[Done, str | None, Ends] | None:
    body = line.response and line.response.body
    if not (line.response and body and body.mlxq and line.error is None and line.response.status_code == 200):
        return None
    stops = [choice.stop_details.type for choice in body.choices if choice.stop_details and choice.stop_details.type]
    reasons = tuple(choice.finish_reason for choice in body.choices if choice.finish_reason is not None)
    done = Done(
        body.mlxq.content_hash,
        body.model,
        is_cut=read_back.are_cut(stops, reasons),
        default_max_tokens=body.mlxq.default_max_tokens,
        finish_reasons=reasons,
        hit_limit="max_tokens" in stops,
        raised_max_tokens=body.mlxq.raised_max_tokens,
        sampling_defaults=None if body.mlxq.generation_config is None else body.mlxq.sampling_defaults or {},
        retry_pass=line.mlxq.retry,
    )
    return done, line.mlxq.line, (body.model, body.object, bytes(body.mlxq.eos), body.mlxq.ignore_eos)


def _known_by(outcome: LineOutcome, stands: Callable[[Done], bool]) -> tuple[Marked, Known] | None:
    done, custom_id = outcome.done, outcome.custom_id
    if outcome.mark is None or done is None or done.is_cut or not stands(done) or not is_text(custom_id):
        return None
    own_id: str | None = custom_id
    if custom_id.startswith(MADE_UP):
        made_up = made_up_id(done.content_hash)
        if custom_id.startswith(f"{made_up}-"):  # one of several lines that are alike, and were counted
            return None
        own_id = None if custom_id == made_up else custom_id
    return Marked(own_id, outcome.mark), Known(custom_id, done.model)
