"""Data × format × policy × number of keys → one record, a mean over scenes."""

from dataclasses import dataclass
from functools import partial
from importlib import metadata

import torch

from selkey.bench import minilm, records
from selkey.bench.quality import data, recall_model
from selkey.bench.quality.contestants import CONTESTANTS, observe
from selkey.bench.quality.measures import Attendance, filled_cache
from selkey.bench.quality.recall_task import RecallTask

WORKLOAD = "quality"
FORMATS = ("bf16", "fp8", "int8", "int4", "int2")
# of the keys of a recall context so many, of other contexts such shares
RECALL_KEYS = (1, 2, 5, 8, 12, 16, 20, 32, 36, 64, 68)
SHARES = (0.025, 0.05, 0.1, 0.25, 0.5)
SUMMARIES = ("mean", "outlier")
# shares of the work: seconds in which a model is trained, a scene is prepared, a policy is measured on one
_TRAINING, _PREPARING, _CASE = 10.0, 2.0, 0.05


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        environment: of `selkey.bench.devices`.
        data: names out of `selkey.bench.quality.data.NAMES`.
        formats: names of formats.
        recall_keys, shares: how many keys are selected, of a recall context and of the others.
        seeds: how many recall models and how many synthetic contexts of a kind.
        seed: the first of them.
        steps: of the training of a recall model.
        invocation: what the user typed.
    """

    environment: dict
    data: tuple[str, ...] = data.NAMES
    formats: tuple[str, ...] = FORMATS
    recall_keys: tuple[int, ...] = RECALL_KEYS
    shares: tuple[float, ...] = SHARES
    seeds: int = 3
    seed: int = 0
    steps: int = recall_model.STEPS
    invocation: str = ""

    @property
    def all_seeds(self):
        return range(self.seed, self.seed + self.seeds)


def run(plan, writer, watch):
    """Measure what is planned, and write a record as soon as it is known.

    Args:
        plan: `Plan`.
        writer: `selkey.bench.records.Writer`.
        watch: function(what is being done, cases done, cases, share of the work done).
    """
    _Run(plan, writer, watch).measure()


class _Run:
    def __init__(self, plan, writer, watch):
        self.plan, self.writer, self.watch = plan, writer, watch
        self.block = records.run_block(plan.invocation, plan.seed)
        self.scenes = {name: plan.seeds for name in plan.data} | ({"minilm": 6} if "minilm" in plan.data else {})
        self.cases = len(plan.data) * len(plan.formats) * len(CONTESTANTS)
        self.cases_done, self.work_done = 0, 0.0
        self.work = sum(self._preparation(name) + self._measuring(name) * self._cases_of(name) for name in plan.data)

    def measure(self):
        for name in self.plan.data:
            reason = minilm.missing() if name == "minilm" else None
            if reason is not None:
                self.writer.write(self._row({"workload": WORKLOAD, "data": name, "dtype": "fp32"}, None, "skip", reason))
                continue
            before = self.work_done
            scenes = self._scenes(name)
            self.work_done = before + self._preparation(name)
            for format in self.plan.formats:
                self._format(scenes, format)

    def _scenes(self, name):
        self._say(f"{name}: preparing", 0)
        if name == "minilm":
            return data.real()
        if name != "recall":
            return [data.synthetic(name, seed) for seed in self.plan.all_seeds]
        task, scenes = RecallTask(), []
        for seed in self.plan.all_seeds:
            model = recall_model.train(seed, task, steps=self.plan.steps, watch=partial(self._trained, seed))
            scenes.append(data.recall(model, task, seed))
        return scenes

    def _trained(self, seed, step):
        self._say(f"recall: training seed {seed}, step {step} of {self.plan.steps}", _TRAINING / self.plan.steps)

    def _format(self, scenes, format):
        caches = {
            kind: [[filled_cache(layer, format, scene.page, kind) for layer in scene.layers] for scene in scenes] for kind in SUMMARIES
        }
        for contestant in CONTESTANTS:
            for k in self._numbers(scenes[0]):
                self._say(f"{scenes[0].data}, {format}: {contestant.label}, {k} keys", self._measuring(scenes[0].data))
                if contestant.make(k, scenes[0], 0) is not None:
                    self._measure(scenes, caches[contestant.summary], contestant, format, k)
            self.cases_done += 1

    def _measure(self, scenes, caches, contestant, format, k):
        try:
            parts = {scene.part: one(scene, here, contestant, k) for scene, here in zip(scenes, caches, strict=True)}
            state, reason = "ok", None
        except Exception as problem:  # what a policy raises is its result
            parts, state, reason = {}, "error", f"{type(problem).__name__}: {problem}"
        case = case_block(scenes, caches[0][0], format, k)
        self.writer.write(self._row(case, contestant, state, reason, parts))

    def _row(self, case, contestant, state, reason, parts=None):
        blocks = {}
        if parts:
            quality = {name: sum(part[name] for part in parts.values()) / len(parts) for name in next(iter(parts.values()))}
            blocks["bytes"] = {name: quality.pop(f"{name}_bytes") for name in ("selector", "row", "rest", "dense")}
            case = case | {"k_frac": quality["rows"] / case["context"]}
            of_parts = {name: _rounded({key: part[key] for key in quality}) for name, part in parts.items()}
            blocks["quality"] = _rounded(quality) | {"parts": of_parts}
        impl = None
        if contestant is not None:
            names = ("name", "label", "rest", "summary", "from_marks", "is_practical")
            impl = {name: getattr(contestant, name) for name in names} | {"version": metadata.version("selkey")}
        command = f"selkey bench quality --data {case['data']} --seed {self.plan.seed}"
        known = {
            "schema_version": records.SCHEMA_VERSION, "run": self.block | {"cmd": command}, "env": self.plan.environment, "case": case,
            "impl": impl, "status": {"state": state, "reason": reason}, "origin": "measured",
        }  # fmt: skip
        return {block: (known | blocks).get(block) for block in records.BLOCKS}

    def _numbers(self, scene):
        return self.plan.recall_keys if scene.data == "recall" else [round(share * scene.n_keys) for share in self.plan.shares]

    def _preparation(self, name):
        return (_TRAINING * self.plan.seeds if name == "recall" else 0.0) + _PREPARING * self.scenes[name]

    def _measuring(self, name):
        return _CASE * self.scenes[name]

    def _cases_of(self, name):
        numbers = self.plan.recall_keys if name == "recall" else self.plan.shares
        return len(self.plan.formats) * len(CONTESTANTS) * len(numbers)

    def _say(self, what, work):
        self.work_done += work
        self.watch(what, self.cases_done, self.cases, min(1.0, self.work_done / self.work))


def _rounded(measures):
    """Six significant digits: what is behind them is noise and makes the files twice as long."""
    return {name: float(f"{value:.6g}") for name, value in measures.items()}


@torch.no_grad()
def one(scene, caches, contestant, k):
    """Measures of one policy on one scene, by name.

    Args:
        caches: one for each layer of the scene.
    """
    policies = [contestant.make(k, scene, number) for number in range(len(scene.layers))]
    for number, policy in enumerate(policies):
        observe(policy, scene.layers[number], caches[number])
    attendance = Attendance(scene, caches, policies, contestant.rest)
    answered = scene.ask(attendance)
    if contestant.name == "learned":
        report = scene.selector_report
        answered |= {"marks_recall_at_8": report.recall, "marks_random_at_8": report.random}
    return attendance.means() | answered


def case_block(scenes, cache, format, k):
    """A case as JSON."""
    return {
        "workload": WORKLOAD, "data": scenes[0].data, "context": scenes[0].n_keys, "k": k, "format": format, "dtype": "fp32",
        "batch": cache.batch_size, "n_kv_heads": cache.n_kv_heads, "head_dim": cache.head_dim, "v_head_dim": cache.v_head_dim,
        "layers": len(scenes[0].layers), "page": scenes[0].page, "parts": [scene.part for scene in scenes],
        "cfg_id": f"{WORKLOAD}-{scenes[0].data}-{format}-k{k}",
    }  # fmt: skip
