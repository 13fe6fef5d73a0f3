"""The machine that a worker runs on: what it has, what limits it, and what of that makes a worker slow.

Refuses to know MLX, models and configurations: what comes from there is handed in.
"""
