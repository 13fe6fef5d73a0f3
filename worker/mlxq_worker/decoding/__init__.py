"""The decode thread's loop: messages in, rows into the engine, results out, within the memory that there is.

Refuses to know Redis and requests; it sees the engine through `engine.api` alone.
"""
