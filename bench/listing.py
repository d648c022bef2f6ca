"""What there is to choose from, with its source: models, devices, formats, selectors, workloads, implementations, claims, plots."""

import inspect
from dataclasses import asdict

from selkey.bench import units
from selkey.kernels.layouts import LAYOUTS


def _models():
    from selkey.bench.architecture import parameters
    from selkey.bench.model_cost import kv_bytes_per_token
    from selkey.bench.models import MODELS

    for model in MODELS.values():
        count = parameters(model)
        sizes = dict.fromkeys((count.total, count.active))
        figures = {name: asdict(figure) for name, figure in model.figures().items()}
        yield (
            {
                "name": model.name, "params B": "/".join(units.three_digits(size / 1e9) for size in sizes), "layers": model.n_layers,
                "heads": f"{model.n_heads}/{model.n_kv_heads}",
                "width": model.head_dim, "KV B/token": f"{kv_bytes_per_token(model):,}", "source": model.source,
            },
            {
                "name": model.name, "title": model.title, "parameters": count.total, "active_parameters": count.active,
                "kv_bytes_per_token": kv_bytes_per_token(model), "notes": model.notes, "figures": figures, "source": model.source,
            },
        )  # fmt: skip


def _devices():
    from selkey.bench.devices import DEVICES

    for device in DEVICES.values():
        figures = device.figures()

        def text(name, factor=1.0, figures=figures, device=device):
            if name not in figures:
                return "–"
            mark = "~" if figures[name].kind == "derived" else ""
            of = f" {device.dtype}" if name == "bf16_tflops" and device.dtype != "bf16" else ""
            return f"{mark}{figures[name].value / factor:.4g}{of}"

        sources = dict.fromkeys(figures[name].source for name in ("read_gbps", "bf16_tflops"))
        yield (
            {
                "name": device.name, "GB": text("memory_bytes", 1e9), "GB/s": text("read_gbps"), "bf16 TF": text("bf16_tflops"),
                "fp8 TF": text("fp8_tflops"), "L2 MiB": text("l2_bytes", 2**20), "W": text("watts"), "source": "; ".join(sources),
            },
            {
                "name": device.name, "title": device.title, "dtype": device.dtype,
                "figures": {name: asdict(figure) for name, figure in figures.items()}, "source": "; ".join(sources),
            },
        )  # fmt: skip


def _formats():
    for name, kind in LAYOUTS.items():
        width = 576 if kind.is_joint else 128
        what = "latent row, value inside" if kind.is_joint else "key or value row"
        yield _alike(name=name, bytes=kind.bytes_per_row(width), columns=width, of=what, source=f"kernels/formats/{name}.py")


def _selectors():
    from selkey.bench import model_cost, models

    model, context = models.model("llama-3-8b"), 2**17
    cache = model_cost.kv_bytes(model, context)
    for selector in model_cost.SELECTORS.values():
        read = model_cost.selector_bytes(model, context, selection=model_cost.Selection(0.05, selector.name))
        share = units.percent(read / cache) if read else "0"
        both = {"what": selector.title, "source": selector.source}
        yield (
            {"name": selector.name, "reads of KV": share} | both,
            {"name": selector.name, "share_of_cache_read": read / cache, "page": selector.page} | both,
        )


def _workloads():
    from selkey.bench import peer_workloads, workloads

    for name in workloads.WORKLOADS:
        home = peer_workloads if hasattr(peer_workloads, name) else workloads
        made_by = getattr(home, name, None) or getattr(home, f"{name}_sweep")
        where = f"{home.__name__.rpartition('.')[2]}.{made_by.__name__}"
        yield _alike(name=name, what=_first(inspect.getdoc(made_by)), source=where)


def _implementations():
    from selkey.bench.peers import PEERS

    for name, peer in PEERS.items():
        home = peer.__name__ if inspect.ismodule(peer) else type(peer).__module__
        text = peer.__doc__ if inspect.ismodule(peer) else inspect.getmodule(type(peer)).__doc__
        yield _alike(name=name, reads=peer.READS, what=_first(text), source=home.removeprefix("selkey."))


def _claims():
    from selkey.bench import claims

    for claim in claims.read():
        shown = {"name": claim.id, "statement": claim.statement, "source": f"seed {claim.seed}"}
        yield shown, shown | {"note": claim.note}


def _plots():
    from selkey.bench import plot

    for name, draw in (plot.ALL | plot.CEILING_FIGURES).items():
        home = inspect.getmodule(draw)
        text = inspect.getdoc(draw) or home.__doc__
        yield _alike(name=name, what=_first(text), source=home.__name__.removeprefix("selkey."))


KINDS = {
    "models": _models, "devices": _devices, "formats": _formats, "selectors": _selectors, "workloads": _workloads,
    "implementations": _implementations, "claims": _claims, "plots": _plots,
}  # fmt: skip


def entries(kind):
    """What there is of a kind: (what a table shows, what JSON has) of each, both dicts with "name" and "source"; JSON has plain numbers."""
    return list(KINDS[kind]())


def _alike(**shown):
    return shown, shown


def _first(text):
    """The first sentence of a docstring."""
    line = " ".join((text or "").split("\n\n")[0].split())
    return line.split(": ", 1)[0] if len(line) > 90 and ": " in line else line
