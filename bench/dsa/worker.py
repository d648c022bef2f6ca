"""One implementation in a process of its own, so that its memory is nobody else's: `python -m selkey.bench.dsa.worker TASK`.

TASK and every line in and out are JSON. A line with "do" comes in, a line goes out:
    attention {"case": …, "name": …, "seed": …}
        {"do": "peak"}                    one call → {"us": …, "peak": bytes, "how": …, "error": against float64}
        {"do": "time"}                    one call → {"us": …}
    model {"model": [name, k, seed, largest]}
        {"do": "prefill", "to": tokens}   → {"us": …, "peak": bytes, "how": …}, all since the start
        {"do": "decode"}                  one token → {"us": …}
The first line out is {"ready": true}. What goes wrong comes back as {"problem": sentence, "missing": whether something is not installed}.
"""

import json
import os
import sys
import time

import torch

from selkey.bench import memory
from selkey.bench.dsa import attention, model
from selkey.bench.workloads import Case


class _Attention:
    def __init__(self, case, name, seed):
        self.calls, self.path = attention.draw(Case(**case), seed), attention.path(name)
        # whatever is allocated once is there before anything counts
        with torch.inference_mode():
            self.path(attention.draw(Case(**case | {"context": 2, "k": 1, "q_len": 2}), seed)[0])

    def do(self, message):
        if message["do"] == "time":
            return {"us": self._timed()[0]}
        (us, outs), peak, how = memory.peak_extra(self._timed, "cpu")
        return {"us": us, "peak": peak, "how": how, "error": attention.error(self.calls, outs)}

    def _timed(self):
        begin = time.perf_counter_ns()
        with torch.inference_mode():
            outs = [self.path(call) for call in self.calls]
        return (time.perf_counter_ns() - begin) / 1e3, outs


class _Model:
    def __init__(self, *words):
        self.reader = model.Reader(*words)

    def do(self, message):
        if message["do"] == "decode":
            return {"us": self.reader.decode()}
        us, peak, how = self.reader.prefill(message["to"])
        return {"us": us, "peak": peak, "how": how}


def main(task):
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand between the answers

    def answer(content):
        print(json.dumps(content), file=answers, flush=True)

    try:
        served = _Model(*task["model"]) if "model" in task else _Attention(**task)
        answer({"ready": True})
        for line in sys.stdin:
            answer(served.do(json.loads(line)))
    except Exception as problem:  # whatever it is, it becomes a row
        missing = isinstance(problem, ImportError | AttributeError)
        answer({"problem": f"{type(problem).__name__}: {problem}".splitlines()[0][:300], "missing": missing})


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
