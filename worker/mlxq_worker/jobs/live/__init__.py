"""What a worker does for live jobs beside what it does for all: it tells their answers while they grow."""
