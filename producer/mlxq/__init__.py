"""mlxq: run LLM prompts in bulk through a Redis queue (the light half: producers)."""
