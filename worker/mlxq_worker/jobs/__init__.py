"""Jobs in a worker's hands, from claim to end: the I/O thread and all that it does in Redis.

Each operation on a job is one Lua script (`lua/`). Refuses to know MLX, and how a batch is decoded.
"""
