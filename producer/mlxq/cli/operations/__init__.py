"""The commands of whoever looks after queues and workers, rather than after requests."""
