"""How fast a whole decoder would answer on a device, and what it would hold, when its heads vary: modelled records.

The decoder is Qwen3-32B with other heads, because its weights in bf16 (60 GB) are what people who ask this put on a 96 GB card.
"""

import json
from pathlib import Path

from selkey.bench import devices, modelled, models, predict
from selkey.bench.model_cost import Selection
from selkey.bench.plots.cases import TITLES

WORKLOAD = "whole_model"
BASE, DEVICE = "qwen3-32b", "rtx-pro-6000"
HEADS = (8, 32, 64)
CONTEXTS = tuple(2**power for power in range(12, 21))
_WIDTH, _WIDTHS_TOGETHER, _KV_HEADS = 128, 8192, 8
_PARTS_AT = 64
# all keys, and a twentieth of them for free or chosen by what has to be read
SELECTIONS = {"all keys": Selection(None), "5 %, list given": Selection(0.05), "5 %, Quest": Selection(0.05, "quest")}


def rows(run, device=DEVICE):
    """A record for each way of varying the heads, head count and context; of 64 heads over 8 also those with selected keys.

    Args:
        run: `selkey.bench.records.run_block`.
        device: a name of `selkey.bench.devices`.
    """
    base, on = models.model(BASE), devices.device(device)
    made = []
    for fix in TITLES:
        for heads in HEADS:
            width = _WIDTHS_TOGETHER // heads if fix == "hidden" else _WIDTH
            kv_heads = min(heads, _KV_HEADS) if fix == "kv_heads" else heads
            asked = base.replace(n_heads=heads, n_kv_heads=kv_heads, head_dim=width, v_head_dim=width)
            is_base = fix == "kv_heads" and heads == _PARTS_AT
            for name, selection in SELECTIONS.items() if is_base else [("all keys", SELECTIONS["all keys"])]:
                made += [_row(run, on, asked, fix, name, selection, context) for context in CONTEXTS]
    return made


def is_own(path):
    """Whether a file holds nothing but what `rows` makes, or is not there."""
    try:
        found = [json.loads(line) for line in Path(path).read_bytes().splitlines()]
        return all(row["case"]["workload"] == WORKLOAD and row["origin"] == "modelled" for row in found)
    except FileNotFoundError:
        return True
    except (ValueError, KeyError, TypeError):
        return False


def _row(run, device, model, fix, name, selection, context):
    expected = predict.decode_step(model, device, context=context, selection=selection)
    roof = predict.decode_step(model, device, context=context, selection=selection, efficiency=1.0)
    case = {
        "model": BASE, "n_layers": model.n_layers, "n_heads": model.n_heads, "n_kv_heads": model.n_kv_heads, "head_dim": model.head_dim,
        "context": context, "batch": 1, "dtype": "bf16", "keys": name, "fix": [fix],
    }  # fmt: skip
    figures = {
        "tok_s": expected.tok_s, "roof_tok_s": roof.tok_s, "bound": expected.bound, "efficiency": expected.efficiency,
        "parts_us": expected.time_us,
    }  # fmt: skip
    held = {"predicted_bytes": sum(expected.memory.values()), "capacity_bytes": expected.capacity_bytes, "fits": expected.fits}
    return modelled.row(run, device, WORKLOAD, case, figures, held)
