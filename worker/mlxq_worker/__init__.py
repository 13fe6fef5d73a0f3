"""The MLX worker behind mlxq: claims jobs, decodes them in one batch, writes results back."""
