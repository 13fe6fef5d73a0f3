"""Which rights in Redis it takes to be what: a producer, a worker, or somebody who only looks."""
