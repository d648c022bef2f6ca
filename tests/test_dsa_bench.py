"""The bench of DeepSeek's sparse attention: its lists, both ways of computing, its rows, its figures, what its command refuses."""

from dataclasses import asdict, replace

import pytest
import torch
from click.testing import CliRunner
from plot_rows import row, texts
from rich.console import Console

pytest.importorskip("transformers")

from selkey.bench import plot, records  # noqa: E402
from selkey.bench.dsa import attention, measure, model, report, worker, workloads  # noqa: E402
from selkey.bench.dsa.command import dsa  # noqa: E402
from selkey.bench.dsa.process import Failed, Worker  # noqa: E402
from selkey.bench.plots import dsa as figures  # noqa: E402
from selkey.bench.plots import table, usable  # noqa: E402

pytestmark = pytest.mark.clean_memory  # nothing here is a kernel, and filling memory is half of the time


def test_lists_are_those_of_an_indexer():
    n, k = 200, 16
    (lists,) = attention.draw_lists(n, k, 0)
    assert lists.shape == (n, k) and lists.dtype == torch.int32
    for s, one in enumerate(lists.tolist()):
        assert len(set(one)) == k and min(one) >= 0
        # a query that sees fewer than k names all that it sees and then the future
        assert sum(position <= s for position in one) == min(k, s + 1) and max(one) < max(k, s + 1)
    assert sum(one == sorted(one) for one in lists.tolist()) < 3
    assert torch.equal(lists, attention.draw_lists(n, k, 0)[0]) and not torch.equal(lists, attention.draw_lists(n, k, 1)[0])


@pytest.mark.parametrize("workload", ["dsa", "dsa_chunks"])
def test_both_ways_compute_the_attention_of_the_lists(workload, monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", 20)
    case = next(case for case in workloads.attention_cases([600], 12) if case.workload == workload)
    calls = attention.draw(replace(case, context=50), seed=3)
    assert [call.query.shape[2] for call in calls] == ([50] if workload == "dsa" else [20, 20, 10])
    assert [call.key.shape[2] for call in calls] == ([50] if workload == "dsa" else [20, 40, 50])
    # as they leave the projection: values are a view of wider rows
    assert calls[0].value.stride()[-2:] == (16 * 256, 1)
    outs = {name: [attention.path(name)(call) for call in calls] for name in workloads.PATHS}
    for name, found in outs.items():
        assert found[0].shape == (1, calls[0].query.shape[2], 16, 128)
        assert attention.error(calls, found) < workloads.TOLERANCE / 2, name
        assert attention.error(calls, [1.05 * out for out in found]) > workloads.TOLERANCE
    # the same numbers in one call and in several
    whole = [attention.path("sdpa")(call) for call in attention.draw(replace(case, workload="dsa", context=50), seed=3)]
    torch.testing.assert_close(torch.cat(outs["selkey"], 1).float(), whole[0].float(), rtol=0.02, atol=0.02)


class InProcess:
    """A worker without a process; the model is made of numbers."""

    absent = ("selkey_indexers",)

    def __init__(self, task):
        self.name = task["model"][0] if "model" in task else task["name"]
        if self.name in self.absent and "model" in task:
            raise Failed("replace_indexers is not there", "skip")
        self.served = None if "model" in task else worker._Attention(**task)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def close(self):
        pass

    def ask(self, do, to=None):
        if self.served is not None:
            return self.served.do({"do": do})
        if self.name == "eager" and (to or 0) > 16:
            raise Failed("out of memory: the system ended the process")
        return {"us": 5.0, "peak": 1000 * (to or 0), "how": "counted"}

    def time_us(self, do):
        return self.ask(do)["us"]


@pytest.fixture
def rows_of(monkeypatch):
    """The function(contexts …) → rows, everything in this process."""
    monkeypatch.setattr(measure, "Worker", InProcess)
    env = {"device": "Test device", "device_kind": "cpu", "selkey": "0.1", "torch": "2", "busy_cores": 0.0, "last_cache_bytes": 2**20}

    def run(max_memory=10**12, **contexts):
        rows, said = [], []
        watch = lambda *progress: said.append(progress)
        bench = measure.Bench(
            rows.append, watch, environment=env, seconds=0.01, seed=1, invocation="selkey bench dsa", max_memory=max_memory
        )
        bench.measure(8, **contexts)
        assert said[-1][0] == "done" and all(0 <= share <= 1 for *_, share in said)
        return rows

    return run


def test_every_row_of_attention_is_checked_timed_and_weighed(rows_of):
    rows = rows_of(attention=[32, 16])
    assert [(one["impl"]["name"], one["case"]["context"]) for one in rows] == [(name, n) for n in (16, 32) for name in ("sdpa", "selkey")]
    for one in rows:
        assert list(one) == list(records.BLOCKS) and records.is_whole(one) and one["status"] == {"state": "ok", "reason": None}
        assert one["correct"]["ok"] and one["time"]["n"] >= 3 and one["time"]["t_us"]["p50"] > 0 and one["case"]["note"] == ""
        assert one["mem"]["peak_extra_bytes"] >= 0 and one["mem"]["input_bytes"] == 2 * one["case"]["context"] * 16 * 640 + (
            4 * one["case"]["context"] * 8 + one["case"]["context"] ** 2
        )
        assert f"bench dsa --part attention --contexts {one['case']['context']} --k 8" in one["run"]["cmd"]
    assert usable.rows(rows)[1] == []


def test_long_calls_are_one_sample_and_wrong_ones_none(rows_of, monkeypatch):
    monkeypatch.setattr(measure, "LONG", 0.0)
    for one in rows_of(attention=[16]):
        assert one["time"]["n"] == 1 and one["time"]["converged"] is None and "one sample" in one["case"]["note"]
    monkeypatch.setattr(workloads, "TOLERANCE", 0.0)
    for one in rows_of(attention=[16]):
        assert one["status"]["state"] == "incorrect" and one["time"] is None and "relative error" in one["status"]["reason"]


def test_what_would_not_fit_is_a_row(rows_of, monkeypatch):
    monkeypatch.setattr(worker.memory, "peak_extra", lambda call, device: (call(), 10**6, "counted"))
    rows = rows_of(attention=[16, 32], max_memory=3 * 10**6)
    assert [one["status"]["state"] for one in rows] == ["ok", "ok", "oom_predicted", "oom_predicted"]
    last = rows[-1]
    # four times the peak at half the tokens
    assert last["mem"]["predicted_extra_bytes"] == 4 * 10**6 and last["time"] is None and "0.0 GB foreseen" in last["status"]["reason"]
    assert usable.rows(rows)[1] == []


def test_the_rows_of_the_model_say_what_is_missing_and_what_broke(rows_of):
    rows = rows_of(model=[16, 32])
    states = {(one["case"]["workload"], one["impl"]["name"], one["case"]["context"]): one["status"]["state"] for one in rows}
    assert len(states) == len(rows) == 16
    for workload in ("dsa_prefill", "dsa_decode"):
        for n in (16, 32):
            assert states[workload, "sdpa", n] == states[workload, "selkey", n] == "ok"
            assert states[workload, "selkey_indexers", n] == "skip"
            assert states[workload, "eager", n] == ("ok" if n == 16 else "error")
    decoded = [one for one in rows if one["case"]["workload"] == "dsa_decode" and one["time"]]
    assert all(one["time"]["n"] > 5 and one["case"]["q_len"] == 1 for one in decoded)
    assert "--part model --contexts 16 --k 8" in rows[0]["run"]["cmd"] and usable.rows(rows)[1] == []


def test_a_model_reads_chunk_by_chunk_and_one_token_at_a_time(monkeypatch):
    monkeypatch.setattr(model, "CHUNK", 6)
    monkeypatch.setattr(model, "LAYERS", 1)
    fed = []
    reader = model.Reader("selkey", 4, 0, 16)
    assert reader.model.config._attn_implementation == "selkey" and reader.model.dtype == torch.bfloat16
    forward = reader._forward
    monkeypatch.setattr(reader, "_forward", lambda count, cache, start: (fed.append((start, count)), forward(count, cache, start)))
    us, peak, how = reader.prefill(8)
    assert reader.decode() > 0 and fed == [(0, 6), (6, 2), (8, 1)] and reader.cache.get_seq_length() == 9
    more, peak_of_more, _ = reader.prefill(16)
    assert fed[3:] == [(9, 6), (15, 1)] and more > us > 0 and peak_of_more >= peak >= 0 and "VmHWM" in how


def test_a_worker_is_a_process_that_answers_and_says_what_is_wrong():
    case = asdict(workloads.attention_cases([16], 4)[0])
    with Worker({"case": case, "name": "selkey", "seed": 0}) as one:
        found = one.ask("peak")
        assert found["us"] > 0 and found["peak"] >= 0 and found["error"] < workloads.TOLERANCE
        assert one.time_us("time") > 0
        one.process.kill()
        with pytest.raises(Failed, match="out of memory: the system ended the process"):
            one.ask("time")


def dsa_rows():
    found = []
    for workload in ("dsa", "dsa_chunks", "dsa_prefill", "dsa_decode"):
        for context in (1024, 2048):
            for name, us in (("sdpa", 4.0), ("selkey", 1.0), ("selkey_indexers", 0.5), ("eager", 8.0)):
                if name in workloads.PATHS or workload in ("dsa_prefill", "dsa_decode"):
                    one = row(workload, name, context=context, k=256, us=us * context, ceilings=None)
                    one["mem"]["peak_extra_bytes"] = int(1e6 * us)
                    found.append(one)
    found.append(row("dsa", "sdpa", context=4096, k=256, state="oom_predicted", time=None, model=None))
    found[-1]["status"]["reason"] = "up to 40.0 GB foreseen, more than is free"
    return found


def test_figures_and_tables_say_how_many_times_less_it_is():
    rows = dsa_rows()
    drawn = dict(plot.figures(rows))
    assert {"dsa", "dsa_model"} <= set(drawn) and plot.ALL["dsa"] is figures.draw
    words = texts(drawn["dsa"])
    assert words.count("4.0×") == 8 and any("sdpa would not fit at n = 4k" in text for text in words)
    assert texts(drawn["dsa_model"]).count("8.0×") == 6
    assert '"selkey, one call",1024,1024' in table.text(drawn["dsa"])
    assert figures.draw([]) is None and figures.draw_model([]) is None
    console = Console(record=True, width=120)
    report.show(rows, console)
    text = console.export_text()
    assert "4.00×" in text and "8.0×" in text and "n = 4,096: up to 40.0 GB foreseen" in text and "oom_predicted" in text


@pytest.mark.parametrize(
    "words, text", [(["--contexts", "1"], "--contexts must be at least 2 tokens; got 1"), (["--part", "x"], "'x' is not one of")]
)
def test_the_command_says_what_is_wrong(words, text):
    result = CliRunner().invoke(dsa, words)
    assert result.exit_code == 2 and text in result.output
