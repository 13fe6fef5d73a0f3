"""The commands that need the worker's packages. `mlxq.cli` imports each one only when it is called."""
