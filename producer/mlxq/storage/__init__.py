"""Tables and lists of any length that take no memory: each in a file of its own that is gone with the process.

Refuses to know what is kept.
"""
