"""Everything that knows of transformers; nothing outside this folder imports it."""
