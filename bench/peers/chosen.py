"""Names of implementations as people give them."""

from selkey.bench.peers import PEERS

DEFAULT = ("sdpa", "gather", "selkey")


def chosen(text):
    """Read names between commas; "all" is every implementation of plain tensors. Raises ValueError that says what there is."""
    names = []
    for part in (part.strip() for part in text.split(",")):
        if part != "all" and part not in PEERS:
            raise ValueError(f"--implementations {part}: there is no such implementation; there are {', '.join(PEERS)}, and all")
        names += [name for name in PEERS if not name.startswith("kv_") and name != "selkey_deterministic"] if part == "all" else [part]
    return tuple(dict.fromkeys(names))
