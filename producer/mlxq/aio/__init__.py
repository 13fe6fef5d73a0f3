"""The queue for programs that run in an event loop: `mlxq.AsyncClient`.

What a client does is written once, in `mlxq.queue`. Here it runs in threads, and its talking to Redis in the loop, by
redis.asyncio. Knows nothing of requests and answers.
"""
