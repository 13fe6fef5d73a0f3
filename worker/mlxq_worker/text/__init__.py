"""Between requests and rows: prompts and structures on the way in, texts, thoughts and tool calls on the way out.

Refuses to know Redis, threads and arrays.
"""
