"""Model × length × contestant → one record, over all seeds and texts."""

import math
import multiprocessing
import pickle
import signal
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata

import torch

from selkey.bench import records
from selkey.bench.marks import flat
from selkey.bench.marks.contestants import CONTESTANTS, Contestant, layouts
from selkey.bench.marks.recall import Recall
from selkey.bench.marks.stories import Stories
from selkey.bench.marks.streams import Stream

WORKLOAD = "marks"
MODELS = {"recall": Recall, "stories": Stories}
# data → {length: texts of a seed}
TEXTS = {"recall": {97: 12, 1000: 8, 10_000: 3, 50_000: 2}, "stories": {512: 8, 2048: 5, 8192: 2, 32_768: 1}}
QUICK = {"recall": {97: 6, 1000: 6}, "stories": {512: 3, 2048: 3}}
# tokens up to which folds take part
FOLDED = 10_000
DENSE = Contestant("dense", "everything (dense cache)", None, is_practical=False)
_NAMED = {one.name: one for one in (*CONTESTANTS, DENSE)}
_NORMAL = 1.959964  # of 95 %


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        environment: of `selkey.bench.machine`.
        texts: {data: {length: texts of a seed}}.
        seeds: how many models (of recall) and sets of texts.
        seed: the first of them.
        steps: of the training of a recall model; None: as many as it needs.
        decoded: tokens that are timed one by one at each length of the stories; 0: nothing is timed.
        workers: processes; 0: all is done in this one.
        invocation: what the user typed.
        quick: texts and decoded are those of --quick.
    """

    environment: dict
    texts: dict
    seeds: int = 3
    seed: int = 0
    steps: int | None = None
    decoded: int = 24
    workers: int = 0
    invocation: str = ""
    quick: bool = False

    @property
    def all_seeds(self):
        return range(self.seed, self.seed + self.seeds)


@dataclass(frozen=True)
class Job:
    """The texts of one length and seed, read by contestants that share the sizes of their caches (none: read densely)."""

    data: str
    seed: int
    length: int
    count: int
    sizes: tuple | None
    contestants: tuple[str, ...]

    @property
    def work(self):
        return self.length * self.count * len(self.contestants)


def run(plan, writer, watch):
    """Measure what is planned, and write a record as soon as it is known.

    Args:
        plan: `Plan`.
        writer: `selkey.bench.records.Writer`.
        watch: function(what is being done, cases done, cases, share of the work done).

    Raises:
        concurrent.futures.process.BrokenProcessPool: a worker did not start, or was ended from outside.
    """
    _Run(plan, writer, watch).measure()


class _Run:
    def __init__(self, plan, writer, watch):
        self.plan, self.writer, self.watch = plan, writer, watch
        self.block = records.run_block(plan.invocation, plan.seed)
        self.found, self.done = {}, 0

    def measure(self):
        plan = self.plan
        with _workers(plan.workers) as each:
            self.watch("training", 0, 0, 0.0)
            wanted = [(data, seed, plan.steps) for data in plan.texts for seed in plan.all_seeds]
            made = {}
            for one, pickled in zip(wanted, each(_made, wanted), strict=True):
                made[one[:2]] = pickled
                self.watch(f"{one[0]}: prepared seed {one[1]}", 0, 0, 0.0)
            jobs = [job for data in plan.texts for job in _jobs(plan, data, pickle.loads(made[data, plan.seed]))]
            # long ones first: the last to end should be short
            jobs.sort(key=lambda job: -job.work)
            self.cases = len({(job.data, job.length, name) for job in jobs for name in job.contestants})
            work, whole = 0, sum(job.work for job in jobs)
            for job, outcome in zip(jobs, each(_outcome, [(job, made[job.data, job.seed]) for job in jobs]), strict=True):
                work += job.work
                self._take(job, outcome)
                self.watch(f"{job.data}: {job.length:,} tokens, seed {job.seed}", self.done, self.cases, work / whole)
        if plan.decoded and "stories" in plan.texts:
            for row in flat.rows(sorted(plan.texts["stories"]), plan.seed, plan.decoded, self._timing):
                self._write(**row)

    def _timing(self, what):
        self.watch(what, self.done, self.cases, 1.0)

    def _take(self, job, outcome):
        for name, part in outcome.items():
            parts = self.found.setdefault((job.data, job.length, name), {})
            parts[job.seed] = part
            if len(parts) == self.plan.seeds:
                self._write(**_row(job, _NAMED[name], {f"seed {seed}": parts[seed] for seed in self.plan.all_seeds}))
                self.done += 1

    def _write(self, case, impl, state, reason, **blocks):
        command = f"selkey bench marks --data {case['data']} --seed {self.plan.seed} --seeds {self.plan.seeds}"
        command += " --quick" if self.plan.quick else ""
        known = {
            "schema_version": records.SCHEMA_VERSION, "run": self.block | {"cmd": command}, "env": self.plan.environment, "case": case,
            "impl": impl | {"version": metadata.version("selkey")}, "status": {"state": state, "reason": reason}, "origin": "measured",
        }  # fmt: skip
        self.writer.write({block: (known | blocks).get(block) for block in records.BLOCKS})


@contextmanager
def _workers(count):
    """function(function, list) → iterator over what the function makes of each, in turn, in this process or in others."""
    if not count:
        yield map
        return
    others = set(multiprocessing.active_children())
    # a worker that does not start breaks it; a multiprocessing.Pool would start another one for ever
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin)
    try:
        yield pool.map
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        raise
    finally:
        pool.shutdown()


def _begin():
    # the parent is told of an interruption, and ends its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _made(wanted):
    """A model with its selector, pickled."""
    data, seed, steps = wanted
    return pickle.dumps(MODELS[data](seed, **({"steps": steps} if steps and data == "recall" else {})))


def _jobs(plan, data, model):
    for length, count in plan.texts[data].items():
        contestants = [one for one in CONTESTANTS if not one.folds or length <= FOLDED]
        for sizes, sharing in layouts(contestants, model.sizes, model.folds, model.estimate).items():
            for seed in plan.all_seeds:
                yield Job(data, seed, length, count, sizes, tuple(one.name for one in sharing))
        for seed in plan.all_seeds:
            yield Job(data, seed, length, count, None, (DENSE.name,))


def _outcome(work):
    """{name of the contestant: what came out}; what is raised is a result, too."""
    job, pickled = work
    try:
        return _read(job, pickle.loads(pickled))
    except Exception as problem:
        return {name: {"problem": f"{type(problem).__name__}: {problem}"} for name in job.contestants}


def _read(job, model):
    texts = model.texts(job.length, job.count)
    if job.sizes is None:
        reader = model.dense(texts)
        if reader is None:
            return {DENSE.name: None}
    else:
        sizes, batch = dict(job.sizes), job.count * len(job.contestants)
        reader, choosers = model.reader(sizes, batch), []
        for name in job.contestants:
            random = torch.Generator().manual_seed(job.seed)
            choosers += [_NAMED[name].make and _NAMED[name].make(text.facts, sizes["pins"], random) for text in texts]
        tokens = torch.stack([text.tokens for text in texts]).repeat(len(job.contestants), 1)
        Stream(reader, choosers, model.piece, model.selector).read(tokens)
        if reader.nbytes != model.estimate(sizes, batch):
            raise RuntimeError(f"holds {reader.nbytes} bytes after {job.length} tokens; expected were {model.estimate(sizes, batch)}")
    answers, losses = reader.ask([text.questions for text in texts] * len(job.contestants)), reader.text_loss()
    found = {}
    for number, name in enumerate(job.contestants):
        mine = slice(number * job.count, (number + 1) * job.count)
        found[name] = {
            "answers": [answer for of_text in answers[mine] for answer in of_text], "text_losses": losses and losses[mine],
            "nbytes": reader.nbytes // job.count if job.sizes is None else model.estimate(dict(job.sizes)), "trained": model.trained,
            "chance": model.chance, "weights": model.weights,
        }  # fmt: skip
    return found


def _row(job, contestant, parts):
    impl = {name: getattr(contestant, name) for name in ("name", "label", "folds", "is_practical")}
    case = {
        "workload": WORKLOAD, "data": job.data, "context": job.length, "dtype": "fp32", "texts": job.count * len(parts),
        "seeds": len(parts), "cfg_id": f"{WORKLOAD}-{job.data}-n{job.length}", **(dict(job.sizes) if job.sizes else {}),
    }  # fmt: skip
    first = next(iter(parts.values()))
    problem = next((part["problem"] for part in parts.values() if part and "problem" in part), None)
    if problem is not None:
        return {"case": case, "impl": impl, "state": "error", "reason": problem}
    if first is None:
        return {"case": case, "impl": impl, "state": "skip", "reason": "reading all of it takes time that grows with its square"}
    case |= {name: first[name] for name in ("trained", "chance", "weights")}
    return {
        "case": case, "impl": impl, "state": "ok", "reason": None, "quality": _quality(parts), "mem": {"total_bytes": first["nbytes"]},
    }  # fmt: skip


def _quality(parts):
    of_parts = {seed: _measures(part["answers"], part["text_losses"]) for seed, part in parts.items()}
    answers = [answer for part in parts.values() for answer in part["answers"]]
    losses = [loss for part in parts.values() for loss in part["text_losses"] or ()]
    together = _measures(answers, losses)
    low, high = interval(together["right"], together["asked"])
    return together | {"low": _rounded(low), "high": _rounded(high), "parts": of_parts}


def _measures(answers, text_losses):
    right = sum(is_right for is_right, _ in answers)
    return {
        "recall": _rounded(right / len(answers)), "right": right, "asked": len(answers),
        "answer_loss": _rounded(sum(loss for _, loss in answers) / len(answers)),
        "text_loss": _rounded(sum(text_losses) / len(text_losses)) if text_losses else None,
    }  # fmt: skip


def interval(right, asked):
    """Wilson's 95 % interval of a share."""
    share, z = right / asked, _NORMAL**2 / asked
    middle, half = share + z / 2, _NORMAL * math.sqrt(share * (1 - share) / asked + z / (4 * asked))
    return max(0.0, (middle - half) / (1 + z)), min(1.0, (middle + half) / (1 + z))


def _rounded(value):
    """Six significant digits."""
    return float(f"{value:.6g}")
