"""Going on with a file of records: what is in it is not measured again, and no line of it is lost."""

from selkey.bench import records

# what may differ between rows of one file, but has to be said
_VERSIONS = ("selkey", "torch", "triton", "numpy", "python")


def continued(path, environment):
    """Open a file to append to it.

    A last line that was cut off stays where it is; what is written next begins a line of its own.

    Args:
        path: of the JSONL file; it may not be there yet.
        environment: of `selkey.bench.machine`, of this run.

    Returns:
        (`selkey.bench.records.Writer`, complaints): the writer knows the rows that are there; complaints name lines that are
        none, and what this run has otherwise than the rows.

    Raises:
        ValueError: a record of another machine or another number of threads, or of another version of the records.
        OSError: the file cannot be read or written.
    """
    rows, complaints, is_cut = [], [], False
    if path.exists():
        is_cut = path.read_bytes()[-1:] not in (b"", b"\n")
    for number, row, problem in records.lines(path) if path.exists() else ():
        if isinstance(problem, records.OtherVersion):
            raise ValueError(f"{path} line {number} {problem}: choose another folder")
        if problem is None:
            _refuse_another_machine(path, row["env"], environment)
            rows.append(row)
        else:
            complaints.append(f"line {number} of {path} {problem}: it stays there, and its case is measured if it is asked for")
    writer = records.Writer(path, rows)
    if is_cut:
        with path.open("ab") as file:
            file.write(b"\n")
    return writer, _differences(rows, environment) + complaints


def done(rows):
    """(cfg_id, implementation, seed) → state: "ok" where any row about it is, otherwise that of the last one."""
    states = {}
    for row in rows:
        if row["impl"]:
            key = row["case"]["cfg_id"], row["impl"]["name"], row["run"]["seed"]
            states[key] = "ok" if states.get(key) == "ok" else row["status"]["state"]
    return states


def _refuse_another_machine(path, there, here):
    """Raises ValueError: rows of one file are compared with one another."""
    if there["device"] != here["device"]:
        raise ValueError(f"{path} holds records of {there['device']}, this is {here['device']}: choose another folder")
    threads = there.get("threads", here["threads"])
    if here["device_kind"] == "cpu" and isinstance(threads, int) and threads != here["threads"]:
        raise ValueError(
            f"{path} holds records of {threads} threads, here are {here['threads']}: set OMP_NUM_THREADS={threads} or choose another folder"
        )


def _differences(rows, environment):
    """In one sentence, which versions the rows have that this run has not."""
    here = {name: environment.get(name) for name in _VERSIONS} | {"source": records.git_commit()}
    found = []
    for name, now in here.items():
        there = {str(row["run"].get("git") if name == "source" else row["env"].get(name)) for row in rows} - {str(now), "None"}
        if there:
            found.append(f"{name} {', '.join(sorted(there))} (now {now})")
    return [f"rows that are there already were measured with {', '.join(found)}"] if found else []
