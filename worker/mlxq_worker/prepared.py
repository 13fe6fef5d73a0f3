"""A request made ready, and what becomes of its rows: the answer, or what killed them.

Knows no jobs and no engine; whoever runs the rows says when all of them have ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from mlxq.contract import ChoiceError, Request, Result, Sampling
from mlxq_worker.engine.api import RowError, RowId, RowResult, RowSpec
from mlxq_worker.messages import Preparer

_NAN = "the model's output for this request has values that are no numbers (NaN)"
_LIMITING_FIELDS = ("min_tokens", "allowed_token_ids", "bad_words", "logit_bias")


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request, its rows as the engine is given them, and who builds the answer from what comes of those."""

    preparer: Preparer
    request: Request
    specs: tuple[RowSpec, ...]

    @property
    def answer_ids(self) -> tuple[RowId, ...]:
        """The row ids of the answers, in the order of the choices."""
        return tuple(row_id for spec in self.specs for row_id in spec.answer_ids)

    def answer(self, results: tuple[RowResult, ...], *, request_id: str, queued_at: float, now: float) -> Result:
        """The answer, from one result for each of `answer_ids`; those that died say why.

        Args:
            request_id: what the answer calls the request.
            queued_at: when the request began to wait, in Unix seconds, like `now`.
        """
        decoded_s = max(result.prefill_s + result.decode_s for result in results)
        queue_s = max(0.0, now - queued_at - decoded_s)
        answer = self.preparer.finish(
            self.request, self.specs, results, request_id=request_id, created=int(now), queue_s=queue_s
        )
        if not any(result.error_code for result in results):
            return answer
        choices = (
            replace(choice, error=self.error_of(result)) for choice, result in zip(answer.choices, results, strict=True)
        )
        return replace(answer, choices=tuple(choices))

    def error_of(self, result: RowResult) -> ChoiceError | None:
        """What killed a row; `None` if nothing did."""
        return None if result.error_code is None else row_error(result.error_code, self.request)

    def error_of_all(self, results: Sequence[RowResult]) -> ChoiceError | None:
        """What killed the first row, if every one has died, so that there is no answer; else `None`."""
        errors = [self.error_of(result) for result in results]
        return errors[0] if all(errors) else None


def row_error(error: RowError, request: Request) -> ChoiceError:
    """What killed a row of this request; names the fields that may have."""
    if error == "nan_logits":
        return ChoiceError(code=error, message=_NAN)
    structure, default = request.structure, Sampling()
    asked = [name for name in _LIMITING_FIELDS if getattr(request.sampling, name) != getattr(default, name)]
    fields = _listed([*_structures(request), *asked]) or "what the request allows and forbids"
    reasons = []
    if structure is not None or request.tools:
        reasons.append("what it is held to is too complex, or a dead end")
        if "min_tokens" in asked:
            reasons.append("it is complete before min_tokens")
        if len(asked) > ("min_tokens" in asked):
            reasons.append("it fits no token that the others leave")
    why = f": {', or '.join(reasons)}" if reasons else ""
    return ChoiceError(code=error, message=f"no token is left to go on with by {fields}{why}")


def _structures(request: Request) -> list[str]:
    """The fields that hold the answer to something."""
    held = [request.structure.param] if request.structure is not None else []
    if request.tools and request.tool_choice.mode == "required":
        held.append("tool_choice")
    if any(tool["function"].get("strict") for tool in request.tools or ()):
        held.append("the strict tools")
    return held


def _listed(names: Sequence[str]) -> str:
    """``a``, ``a and b`` or ``a, b and c``."""
    *others, last = names or ("",)
    return f"{', '.join(others)} and {last}" if others else last
