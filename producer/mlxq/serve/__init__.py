"""OpenAI's API over the queue: `api/` speaks HTTP, `work/` has batches answered, `live/` who waits, `store/` keeps.

Holds no model and answers nothing itself: it is a producer and a collector beside any number of workers. Its HTTP
comes from the extra ``mlxq[serve]``, which only `api/` imports.
"""
