"""Records of what was computed and not measured: the same blocks, `origin` "modelled", so that figures and reports read both."""

from importlib import metadata

from selkey.bench import records


def row(run, device, workload, case, model, mem=None):
    """One record.

    Args:
        run: `selkey.bench.records.run_block`.
        device: `selkey.bench.devices.Device` that the figures are for.
        workload: what was asked, such as "fit".
        case, model, mem: blocks.
    """
    known = {
        "schema_version": records.SCHEMA_VERSION, "run": run, "origin": "modelled",
        "env": {"device": device.title, "device_kind": "modelled", "selkey": _version()},
        "case": {"workload": workload} | case, "model": model, "mem": mem,
        "impl": {"name": "model", "version": _version(), "backend": "none", "reads": "all"}, "status": {"state": "ok", "reason": None},
    }  # fmt: skip
    return {block: known.get(block) for block in records.BLOCKS}


def _version():
    try:
        return metadata.version("selkey")
    except metadata.PackageNotFoundError:
        return None


def write(rows, folder):
    """Write records.jsonl into a folder and return its path.

    Raises:
        ValueError: the folder holds records already or cannot be written.
    """
    path = folder / "records.jsonl"
    if path.exists():
        raise ValueError(f"{folder} already holds records.jsonl: choose another folder, nothing is overwritten")
    try:
        writer = records.Writer(path)
        for record in rows:
            writer.write(record)
    except OSError as problem:
        raise ValueError(f"{folder} cannot be written: {problem.strerror}") from None
    return path
