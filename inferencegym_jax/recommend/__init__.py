"""Which configuration for a request log, and the engine flags that set it."""
