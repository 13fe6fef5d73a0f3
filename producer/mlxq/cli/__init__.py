"""The `mlxq` command line."""
