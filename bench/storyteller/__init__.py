"""The storyteller: a small language model, trained here on stories of a small world made on the fly."""
