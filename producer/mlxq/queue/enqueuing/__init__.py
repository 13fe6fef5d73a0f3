"""How jobs get into the queue: what RQ keeps of each, and its place in a batch."""
