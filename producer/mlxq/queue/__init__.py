"""The queue as a producer sees it: batches put into Redis, followed, cancelled, and read.

Speaks RQ's keys and ours (`mlxq.keys`). What must not be seen half done is a script in `lua/`. Refuses to know files,
terminals and who answers.
"""
