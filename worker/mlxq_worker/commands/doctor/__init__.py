"""`mlxq doctor`: looks at everything that an installation hangs on, and says of each what to do.

`command` asks and prints. Each other module looks at one thing and yields `Finding`s; it changes nothing, starts
nothing, and an error of what it looks at is a finding, not an error of its own.
"""
