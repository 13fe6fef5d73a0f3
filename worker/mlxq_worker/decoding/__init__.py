"""The decode thread's loop: messages in, rows into the engine, results out, within the memory that there is, until the
worker is at its end.

Refuses to know Redis and requests; it sees the engine through `engine.api` alone.
"""
