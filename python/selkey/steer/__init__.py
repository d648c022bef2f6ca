"""`selkey steer`: a model writes, a human marks what it must not forget."""
