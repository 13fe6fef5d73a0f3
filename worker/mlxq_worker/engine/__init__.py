"""The batch engine: schedule, run, commit. Knows nothing of Redis, RQ or commands."""
