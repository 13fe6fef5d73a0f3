"""vLLM's words for generating without a server: what its `LLM` class is asked with, and what it answers.

Reads prompts and parameters into requests, by the same checks as any other request. Knows no model, no MLX and no
queue: the class that runs them is the worker package's, `mlxq.LLM`.
"""
