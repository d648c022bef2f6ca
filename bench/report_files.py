"""What a report is made of: files and folders of results, read as far as they can be used."""

import json
from dataclasses import dataclass
from pathlib import Path

from selkey.bench import ceiling_file, records
from selkey.bench.plots import usable

# what tells other files by
_KINDS = {
    "claims": {"statement", "verdict", "cases"}, "published": {"published", "predicted", "ratio"},
    "trainings": {"outcomes", "memory", "case"}, "ceilings": {"read_gbps", "matrix_tflops", "curves"},
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What the files hold.

    Attributes:
        rows: records, each once.
        ceilings: contents of files of `selkey ceilings`.
        claims, published: objects of `selkey claims --json` and `selkey validate --json`.
        trainings: contents of files of `selkey train`.
        sources: names of the files that were used.
        complaints: what was left out, a sentence each.
    """

    rows: list
    ceilings: list
    claims: list
    published: list
    trainings: list
    sources: list
    complaints: list


def gather(paths):
    """Read files, and those of folders.

    Args:
        paths: JSONL files of records, what `selkey ceilings`, `train`, `claims --json` and `validate --json` wrote, or folders of these.

    Returns:
        Found.

    Raises:
        ValueError: a path cannot be read, or nothing in all of them can be used; one line.
    """
    rows, sources, complaints = [], [], []
    others = {"ceilings": [], "claims": [], "published": [], "trainings": []}
    for path, is_asked in _listed(paths):
        try:
            kind, content, left = _other(path)
            complaints += [f"{path}: {problem}" for problem in left]
            if kind == "records":
                good, problems = read_records(path)
                rows += good
                complaints += [f"{path}: {problem}" for problem in problems]
            else:
                others[kind] += content
        except (ValueError, OSError) as problem:
            if is_asked and len(paths) == 1:
                raise ValueError(_line(path, problem)) from None
            complaints.append(_line(path, problem))
            continue
        sources.append(str(path))
    if not sources:
        raise ValueError(complaints[0] if complaints else f"{paths[0]} holds no records: give a folder or a file of `selkey bench`")
    rows, again = _latest(rows)
    if again:
        complaints.append(f"{again} rows were measured again later; the latest of each case counts")
    return Found(rows, **others, sources=sources, complaints=complaints)


def read_records(path):
    """Records that figures and tables can use, and what was wrong with the others.

    Returns:
        (rows, complaints).

    Raises:
        ValueError: there is none. OSError: the file cannot be read.
    """
    rows, complaints = records.read(path)
    good, lacking = usable.rows(rows)
    complaints = [*complaints, *lacking]
    if not good:
        raise ValueError(f"{path} holds no record of `selkey bench`" + (f" ({complaints[0]})" if complaints else ""))
    return good, complaints


def _listed(paths):
    """(file, whether it was named itself), the files of a folder in order."""
    for path in map(Path, paths):
        if not path.exists():
            raise ValueError(f"{path} does not exist")
        if not path.is_dir():
            yield path, True
            continue
        try:
            inside = sorted(path.iterdir())
        except OSError as problem:
            raise ValueError(f"{path} cannot be read: {problem.strerror}") from None
        for one in inside:
            if one.suffix in (".jsonl", ".json") and not one.name.startswith("."):
                yield one, False


def _other(path):
    """(what a file is, its objects, complaints about lines left out); "records" for what `read_records` has to read.

    Raises:
        ValueError: a JSON file of no known kind, or one that cannot be used in part.
    """
    content, complaints = [], []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            try:
                content.append(json.loads(line))
            except (ValueError, RecursionError):
                complaints.append(f"line {number} is not JSON and was left out")
    if complaints and path.suffix != ".jsonl":
        content, complaints = _whole(path), []
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], list):
        content = content[0]
    objects = content if isinstance(content, list) else [content]
    for kind, fields in _KINDS.items():
        if objects and all(isinstance(one, dict) and fields <= one.keys() for one in objects):
            if kind == "ceilings":
                return kind, [ceiling_file.load(path)], []
            return kind, objects, complaints
    if path.suffix == ".jsonl":
        return "records", None, []
    raise ValueError("holds neither ceilings, claims, published figures nor a training")


def _whole(path):
    """The content of a file that is one JSON text."""
    content = path.read_bytes()
    try:
        return json.loads(content)
    except UnicodeDecodeError as problem:
        raise ValueError(f"line {content[: problem.start].count(10) + 1} is not text") from None
    except RecursionError:
        raise ValueError("is not JSON") from None


def _latest(rows):
    """Each case, implementation, device and origin once: the latest run counts. Returns (rows, how many were left out)."""
    kept = {}
    for row in rows:
        key = json.dumps(
            [
                row["env"].get("device"),
                row["origin"],
                row["case"],
                (row["impl"] or {}).get("name") if row.get("impl") else None,
                _progress(row),
            ]
        )
        if key not in kept or (row["run"].get("time") or "") >= (kept[key]["run"].get("time") or ""):
            kept[key] = row
    return list(kept.values()), len(rows) - len(kept)


def _progress(row):
    """What tells records of one case apart: how far a stream was."""
    stream = row.get("stream")
    return stream and (stream["tokens_seen"], stream["tokens_of_append"])


def _line(path, problem):
    if isinstance(problem, OSError):
        return f"{path} cannot be read: {problem.strerror or problem}"
    text = str(problem).split("\n")[0]
    return text if str(path) in text else f"{path}: {'is not JSON' if isinstance(problem, json.JSONDecodeError) else text}"
