"""selkey inside transformers; nothing outside this folder imports transformers, and importing it changes nothing.

register()             "selkey" becomes an attention implementation
use(model)             register, set it, and see that it took; optionally with a policy for models that select nothing
replace_indexers(model), restore_indexers(model)     indexers that never store a score for every pair of tokens
indexer_losses(model)  what they are trained on
SelkeyCache(model)     a cache for `generate`: compressed, or of constant size, with pins by text
"""

_FILES = {
    "register": "implementation",
    "use": "implementation",
    "replace_indexers": "indexers",
    "restore_indexers": "indexers",
    "indexer_losses": "indexer_loss",
    "SelkeyCache": "cache",
}

__all__ = list(_FILES)


def __getattr__(name):
    from importlib import import_module

    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "SelkeyCache":
        # a subclass of transformers' own, which is then needed at once
        from selkey.hf.support import check_transformers

        check_transformers()
    return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)


def __dir__():
    return [*globals(), *_FILES]
