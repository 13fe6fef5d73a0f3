"""Generating in the caller's own process: vLLM's `LLM` class over the parts that a worker is made of.

The same model, preparer, decode loop and engine as a worker's, on one thread, without jobs, Redis or another process.
"""
