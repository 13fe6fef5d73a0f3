"""Where keys and values lie: slots of slabs, prefixes that rows share, and what all of it may take.

Refuses to know rows and whose turn it is.
"""
