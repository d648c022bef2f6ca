"""The message for a name that nobody knows: what was meant, most likely."""

import difflib


def unknown(kind, name, names, advice=""):
    """ValueError that names the nearest names, or all of them where none is near.

    Args:
        kind: what was asked for, such as "model".
        name: what came.
        names: what there is.
        advice: what else can be done, a clause.
    """
    names = list(names)
    lower = str(name).lower()
    near = difflib.get_close_matches(lower, names, n=3, cutoff=0.5) or [other for other in names if lower and lower in other][:3]
    hint = f"nearest: {', '.join(near)}" if near else f"there are {', '.join(names)}"
    return ValueError(f"unknown {kind} {name!r}: {hint}{'; ' + advice if advice else ''}")
