"""Sizes of the cache of a session, and what a cache of everything would take."""

POOLS = {"sinks": 4, "pins": 128, "window": 256, "keep": 0, "folds": 32}


def sizes(model, bounded=None):
    """{pool: tokens}: what is asked for, the rest as in POOLS, the window smaller for a model trained on short texts.

    Marks have to be seen from within what the model was trained on, beside the window; and the folded text counts as no more tokens
    than are left of that. Pins are not subtracted: with many of them, and all folds, a little more is in sight than was trained on.
    """
    trained = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    window = POOLS["window"] if trained is None else max(1, min(POOLS["window"], trained // 2))
    found = POOLS | {"window": window} | (bounded or {})
    left = None if trained is None else max(1, trained - found["window"] - found["sinks"])
    return {"fold_tokens": left} | found


def token_nbytes(model, layers):
    """Bytes of one token's keys and values in so many layers, in the dtype of the model."""
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return layers * heads * 2 * width * model.dtype.itemsize
