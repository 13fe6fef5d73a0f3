"""A step's tokens, as arrays that every layer uses: their positions, where they are written, what they attend to, and
which of them go through a module together.

Knows nothing of keys and values. Most steps are the one before, a token further, and are made of it.
"""
