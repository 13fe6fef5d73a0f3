"""What a worker measures of itself: the table, and what its two threads record, as plain numbers.

`table` says what there is, `decode_figures` and `job_figures` record it, each for one thread, and `report` sends it to
the process that serves it. Knows nothing of Prometheus, which that process alone needs.
"""
