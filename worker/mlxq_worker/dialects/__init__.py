"""How the families of models speak: their tool calls, their reasoning, and how both are recognised.

A dialect is data first: markers, spellings and a reader shared with its relatives. `registry` is the one list of all;
nothing here knows requests, rows or the queue.
"""
