"""One small module for each family of tool-call syntaxes; `mlxq_worker.dialects.registry` lists them all."""
