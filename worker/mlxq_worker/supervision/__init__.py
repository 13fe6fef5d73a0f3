"""Processes that look after processes: the supervisor, its worker, the jobs of workers that died, a private Redis.

Never imports MLX: it has to outlive it.
"""
