"""What a page is told of a session: plain values, for JSON."""

from selkey.steer import marks as spans
from selkey.steer.pools import token_nbytes


def describe(session):
    """The state of a session; what is only known of a `Writer` is added there.

    Returns:
        mapping: "epoch"; "model", its name; "tokens", how many there are; "stretch"; "error": what went wrong, or None;
        "window_start": from there on every token is held exactly, as are the first "sinks" and what is marked; "window" and "pins",
        tokens; "marks": [[start, stop, boost]]; "marked_tokens"; "pools": {pool: [tokens, bytes]} over all layers, tokens per layer;
        "nbytes" of them; "dense_nbytes" that these would be with keys and values of all tokens where attention is full; "mass":
        {pool: share} of the attention of the newest token that was written, and its "certificate", or None; "n_layers", "n_heads";
        "look_start", "look_stop"; "undo": what it would take back, or None; "log", "logged": file of the marks, and records in it;
        "temperature", "seed".
    """
    cache, looks, text = session.cache, session.looks, session.text
    layers, heads = session.shape
    mass, by_layer = looks.mass() if looks.stop > looks.start else (None, None)
    sliding = sum(getattr(layer, "is_sliding", False) for layer in cache.layers)
    pools = {name: [tokens // (sliding if name == "sliding" else layers), nbytes] for name, (tokens, nbytes) in cache.pools().items()}
    # layers with a sliding window, or of constant size, would be the same beside a full cache
    own = sum(pools[name][1] for name in ("sliding", "states") if name in pools)
    return {
        "epoch": session.epoch, "model": session.name, "tokens": len(text), "stretch": session.stretch, "error": session.trouble,
        "window_start": cache.window_start() if len(text) else 0, "sinks": session.bounded["sinks"], "window": session.bounded["window"],
        "pins": session.bounded["pins"], "marks": [list(mark) for mark in session.marks],
        "marked_tokens": len(spans.positions(session.marks)), "pools": pools, "nbytes": cache.nbytes,
        "dense_nbytes": len(text) * token_nbytes(session.model, layers) + own, "mass": mass,
        "certificate": None if mass is None else _certificate(by_layer), "n_layers": layers, "n_heads": heads, "look_start": looks.start,
        "look_stop": looks.stop, "undo": session.undoes, "log": session.log.path.name, "logged": session.log.count,
        "temperature": session.sampler.temperature, "seed": session.sampler.seed,
    }  # fmt: skip


def _certificate(layers):
    share, error = (sum(values) / len(layers) for values in zip(*layers, strict=True))
    sentence = f"{share * 100:.0f} % of the attention goes to folded text; estimated error of the output from folding: {error * 100:.1f} %"
    return {"fold_share": round(share, 4), "fold_error": round(error, 4), "layers": [list(layer) for layer in layers], "sentence": sentence}
