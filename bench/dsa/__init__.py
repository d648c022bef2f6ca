"""DeepSeek's sparse attention as transformers computes it, and with selkey: the command `selkey bench dsa`."""
