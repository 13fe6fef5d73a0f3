"""`python -m mlxq` is `mlxq`."""

from mlxq.cli import main

main(prog_name="mlxq")
