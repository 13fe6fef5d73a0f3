"""Notices when a row has begun to loop: its tokens end with several copies of one pattern.

The rule is vLLM's (`check_sequence_repetition` in vllm/v1/core/sched/utils.py), which compares the copies anew with
every token. Here each token is compared once for every length that a pattern can have, so that a step costs the same
however long the row is and however many copies are asked for. Plain Python; knows no text.
"""

from __future__ import annotations

from collections.abc import Sequence

from mlxq.contract import RepetitionDetection


class RepetitionWatch:
    """Follows one row's tokens.

    For each length `p` of a pattern it keeps how many of the newest tokens in a row equal the one `p` positions before
    them. The tokens end with `c` copies of a pattern of length `p` exactly when those are `(c - 1) * p` or more.
    """

    def __init__(self, rule: RepetitionDetection) -> None:
        self._lengths = range(max(1, rule.min_pattern_size), rule.max_pattern_size + 1)
        self._num_more_copies = rule.min_count - 1
        self._num_equal = [0] * len(self._lengths)

    def push(self, token_ids: Sequence[int], num_skipped: int = 0) -> bool:
        """Whether the row loops, now that `token_ids` has one token more than at the last call. Its first `num_skipped`
        tokens, of which none was ever the newest, count for nothing."""
        newest, num_tokens = token_ids[-1], len(token_ids) - num_skipped
        loops = False
        for index, length in enumerate(self._lengths):
            is_equal = length < num_tokens and token_ids[-1 - length] == newest
            self._num_equal[index] = self._num_equal[index] + 1 if is_equal else 0
            loops = loops or self._num_equal[index] >= self._num_more_copies * length
        return loops
