"""What clients of `mlxq serve` see: routes, keys, uploads, errors. Works on no batch itself."""
