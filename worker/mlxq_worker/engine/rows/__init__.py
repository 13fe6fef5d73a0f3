"""One sequence each: what it asks for, which token ends it, and what came of it.

Plain Python. Refuses to know arrays, memory and the other rows of the batch.
"""
