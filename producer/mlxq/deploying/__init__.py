"""What it takes to run queues and workers on machines: files for those who start them, and rights in Redis."""
