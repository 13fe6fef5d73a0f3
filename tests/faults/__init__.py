"""A run under faults: workers, Redis and the producer are killed, frozen and cut off, and every answer must arrive.

    python -m tests.faults --seconds 300 --requests 3000 --workers 3 --seed 1

The seed fixes the requests and the schedule of faults, not the order in which processes get the CPU: two runs with
one seed do the same things to the system, and it may answer them differently.
"""
