"""The lines of the terminal's tables of one query over a growing cache: which rows belong together, and how each is called."""

from selkey.bench import units

BASELINES = ("sdpa", "gather")
# what tells two cases of one context apart
_SHAPE = ("n_heads", "n_kv_heads", "n_list_heads", "head_dim", "batch", "dtype")


def lines(cases, cell):
    """A line for each shape, number of keys and implementation.

    Args:
        cases: list of {implementation: record}.
        cell: function(such a dict, implementation) → text.

    Returns:
        (implementations that have lines, contexts, label → texts, one a context). The baselines have lines only where nothing else
        was measured.
    """
    contexts = sorted({_case(together)["context"] for together in cases})
    measured = dict.fromkeys(name for together in cases for name in together)
    names = [name for name in measured if name not in BASELINES] or list(measured)
    kept, found = _kept(cases), {}
    for together in cases:
        case = _case(together)
        for number, name in enumerate(names):
            if name in together:
                order, keys = kept[case["cfg_id"]]
                label = f"{_shape_in_words(case)}\n{f'{name}, ' if len(names) > 1 else ''}{keys}"
                place = (*_shape(case), order, number, label)
                found.setdefault(place, {})[case["context"]] = cell(together, name)
    return names, contexts, {place[-1]: [found[place].get(context, "–") for context in contexts] for place in sorted(found)}


def _kept(cases):
    """cfg_id → (order, words) for how many keys are read.

    A number that stands at several contexts, or a share where that does: 205 of 4k and 410 of 8k are 5% of both.
    """
    ks = {(_shape(case), case["context"], case["k"]) for case in map(_case, cases)}
    found = {}
    for case in map(_case, cases):
        k, context, share = case["k"], case["context"], units.percent(case["k_frac"])
        others = [(n, other) for shape, n, other in ks if shape == _shape(case) and n != context]
        if k == context:
            found[case["cfg_id"]] = (2, 0), "all keys"
        elif any(other == k for _, other in others) or not any(units.percent(other / n) == share for n, other in others):
            found[case["cfg_id"]] = (0, k), f"k {units.count(k)}"
        else:
            found[case["cfg_id"]] = (1, float(share[:-1])), f"k {share}"
    return found


def _shape_in_words(case):
    heads, kv_heads = case["n_heads"], case["n_kv_heads"]
    words = f"{heads} × {case['head_dim']}" if kv_heads == heads else f"{heads}/{kv_heads} × {case['head_dim']}"
    if case["n_list_heads"] != kv_heads:
        words += f", {case['n_list_heads']} lists"
    return words + (f", batch {case['batch']}" if case["batch"] > 1 else "") + (f", {case['dtype']}" if case["dtype"] != "bf16" else "")


def _shape(case):
    return tuple(case[field] for field in _SHAPE)


def _case(together):
    return next(iter(together.values()))["case"]
