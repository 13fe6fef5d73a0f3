"""From logits to tokens, for all rows of a step together, each by its own parameters.

Refuses to know where logits come from, and what becomes of a row.
"""
