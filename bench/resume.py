"""Going on with a file of records: what is in it is not measured again, and no line of it is lost."""

import json

from selkey.bench import records


def continued(path, environment):
    """Open a file to append to it.

    A last line that was cut off stays where it is; what is written next begins a line of its own.

    Args:
        path: of the JSONL file; it may not be there yet.
        environment: of `selkey.bench.machine`, of this run.

    Returns:
        (`selkey.bench.records.Writer`, complaints): the writer knows the rows that are there; complaints name lines that are none.

    Raises:
        ValueError: a record of another machine, or of another version of the records.
        OSError: the file cannot be read or written.
    """
    rows, complaints = [], []
    text = path.read_bytes() if path.exists() else b""
    lines = text.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = _record(line, path, number)
        if row is None:
            kind = "is cut off" if number == len(lines) else "is not a record"
            complaints.append(f"line {number} of {path} {kind}: it stays there, and its case is measured if it is asked for")
            continue
        if row["env"]["device"] != environment["device"]:
            raise ValueError(f"{path} holds records of {row['env']['device']}, this is {environment['device']}: choose another folder")
        rows.append(row)
    writer = records.Writer(path, rows)
    if text and not text.endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")
    return writer, complaints


def done(rows):
    """(cfg_id, implementation, seed) → state of the last row about it."""
    return {(row["case"]["cfg_id"], row["impl"]["name"], row["run"]["seed"]): row["status"]["state"] for row in rows if row["impl"]}


def _record(line, path, number):
    """A line as a record, None where it is none. Raises ValueError for a record of another version."""
    try:
        row = json.loads(line)
        version = str(row["schema_version"])
    except (ValueError, KeyError, TypeError):
        return None
    if version.split(".")[0] != records.SCHEMA_VERSION.split(".")[0]:
        raise ValueError(f"{path} line {number} has schema version {version}, this is {records.SCHEMA_VERSION}: choose another folder")
    return row if set(records.BLOCKS) <= set(row) else None
