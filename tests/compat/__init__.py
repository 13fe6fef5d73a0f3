"""Against programs of other people that look at RQ, each as it is released. They need other versions of redis-py and RQ
than ours, so `make compat` gives them an environment of their own."""
