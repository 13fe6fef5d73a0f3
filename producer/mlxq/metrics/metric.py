"""What a metric is: a name, a kind, a sentence, labels. Counts nothing itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "mlxq_"
"""Before every name, as it is served."""

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. Its values are told apart by `labels`; `buckets` are the upper bounds of a histogram's, rising, in
    the metric's unit, and one for everything above is added.

    `name` has no prefix; that of a counter ends in ``_total``. `semconv` is OpenTelemetry's name for the same, where
    its conventions for generative AI have one.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    semconv: str | None = None

    @property
    def full_name(self) -> str:
        """As it is served and queried; a histogram's with ``_bucket``, ``_count`` and ``_sum`` behind it."""
        return PREFIX + self.name
