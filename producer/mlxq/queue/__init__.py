"""The queue as a producer sees it: batches put into Redis, followed, cancelled, and read.

Speaks RQ's keys and ours (`mlxq.keys`). Refuses to know files, terminals and who answers.
"""
