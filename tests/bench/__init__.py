"""Benchmarks: seeded, warmed up, rivals interleaved in one process tree, medians of several runs, last line JSON."""
