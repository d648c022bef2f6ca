"""`selkey sweep`: axes as people write them, cases that differ, rows instead of crashes, going on with what is there."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from selkey.bench import axes, cost, machine, memory, one_case, peer_workloads, records, resume, room, sweeps, timing, words, workloads
from selkey.bench.commands.bench import bench
from selkey.bench.commands.sweep import sweep
from selkey.bench.peers import PEERS
from selkey.bench.run import Plan, run
from selkey.bench.workloads import Case

pytestmark = pytest.mark.clean_memory

SMALL = ["--heads", "2,4", "--contexts", "32,64", "--k", "8", "--fix", "head_dim", "--head-dim", "16", "--time-budget", "0.3", "--no-plots"]


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
    """Ceilings and caches are not what is tested: make them cheap, and let no call of some microseconds beat them."""
    monkeypatch.setattr("selkey.bench.run.ABOVE_ROOF", math.inf)
    monkeypatch.setattr("selkey.bench.run.PATIENCE", 100)
    monkeypatch.setitem(timing._SMALLEST_FLUSH, "cpu", 2**20)
    monkeypatch.setattr("selkey.bench.ceilings.SMALLEST_WORKING_SET", 2**22)
    monkeypatch.setattr("selkey.bench.ceilings.MATRIX_SIZES", {"cpu": (64,), "cuda": (64,)})
    monkeypatch.setattr("selkey.bench.inputs._BLOCK_ELEMENTS", 65_521)
    environment = machine.environment("cpu") | {"last_cache_bytes": None}
    monkeypatch.setattr(machine, "environment", lambda device: dict(environment))


def measured(*arguments):
    return CliRunner().invoke(sweep, [*map(str, arguments), "--device", "cpu"])


def rows_of(folder):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def axes_of(**changes):
    options = {
        "heads": (4, 8), "kv_heads": None, "contexts": (64, 128), "ks": (16, 0.5), "formats": ("plain",), "batches": (1,),
        "fixes": ("head_dim",), "hidden": 128, "head_dim": 16, "dtype": "bf16", "implementations": ("sdpa", "gather", "selkey"),
    }  # fmt: skip
    return sweeps.Axes(**options | changes)


# Axes.


@pytest.mark.parametrize(
    "text, numbers",
    [
        ("8,16", (8, 16)),
        ("8:128:x2", (8, 16, 32, 64, 128)),
        ("4k:1M:x2", tuple(2**n for n in range(12, 21))),
        ("1:9:+2", (1, 3, 5, 7, 9)),
        ("8:20:x2,24,8", (8, 16, 24)),
        ("3:3:x2", (3,)),
    ],
)
def test_axes(text, numbers):
    assert axes.parse_axis(text) == numbers


@pytest.mark.parametrize("text", ["8:128", "8:128:2", "8:4:x2", "8:16:x1", "8:128:x0", "a", "0", "1:9:+0", "8::x2", "1:1M:+1", ""])
def test_bad_axes_are_named(text):
    result = measured("--heads", text)
    assert result.exit_code == 2 and "Traceback" not in result.output and isinstance(result.exception, SystemExit)
    assert len(result.output.strip().splitlines()[-1]) > 30


def test_keys_and_shares():
    assert axes.parse_ks("256,1024,5%,1k,dense") == (256, 1024, 0.05, None)
    assert [axes.keys(k, 4096) for k in (256, 0.05, 8192, None, 1e-9)] == [256, 205, 4096, 4096, 1]
    assert axes.parse_kv_heads("same") is None and axes.parse_kv_heads("2,8") == (2, 8)


# Cases.


def test_cases_are_the_product_and_have_names_of_their_own():
    wanted = axes_of(kv_heads=(2, 4), batches=(1, 3))
    cases, impossible = sweeps.cases(wanted)
    assert len(cases) == 2 * 2 * 2 * 2 * 2 and not impossible
    assert len({case.cfg_id for case in cases}) == len(cases)
    assert {(case.n_heads, case.n_kv_heads, case.n_list_heads) for case in cases} == {(4, 2, 2), (4, 4, 4), (8, 2, 2), (8, 4, 4)}
    one = cases[0]
    changes = {
        "n_heads": 12, "n_kv_heads": 1, "n_list_heads": 1, "head_dim": 48, "v_head_dim": 8, "context": 99, "k": 9, "q_len": 2, "batch": 7,
        "dtype": "fp32", "page": 2, "layer": 3, "workload": "cache",
    }  # fmt: skip
    assert len({one.cfg_id, *(replace(one, **{name: value}).cfg_id for name, value in changes.items())}) == len(changes) + 1


def test_what_stays_when_the_heads_vary():
    cases, _ = sweeps.cases(axes_of(fixes=("hidden", "head_dim", "kv_heads"), kv_heads=(4,), ks=(16,), contexts=(64,)))
    shapes = {(case.n_heads, case.n_kv_heads, case.head_dim): set(case.fix) for case in cases}
    # 128 hidden: 4 heads of 32, 8 of 16, which are those of the two other ways
    assert shapes == {(4, 4, 32): {"hidden"}, (4, 4, 16): {"head_dim", "kv_heads"}, (8, 4, 16): {"hidden", "head_dim", "kv_heads"}}
    # same: as many KV heads as query heads, but 8 where they are to stay
    cases, impossible = sweeps.cases(axes_of(heads=(4, 8, 16), fixes=("kv_heads",), ks=(16,), contexts=(64,)))
    assert [(case.n_heads, case.n_kv_heads) for case in cases] == [(8, 8), (16, 8)]
    assert impossible == ["4 query heads cannot share 8 KV heads equally"]


def test_formats_are_implementations_of_selkey():
    case = sweeps.cases(axes_of(formats=("plain", "int8")))[0][0]
    assert case.implementations == ("sdpa", "gather", "selkey", "kv_int8")
    assert sweeps.cases(axes_of(formats=("int4",)))[0][0].implementations == ("sdpa", "gather", "kv_int4")


def test_shares_that_are_one_number_are_measured_once():
    cases, _ = sweeps.cases(axes_of(ks=(32, 0.5, None), contexts=(64,), heads=(4,)))
    assert [case.k for case in cases] == [32, 64]


@pytest.mark.parametrize("formats, names", [(("plain", "int4"), ("sdpa", "gather", "selkey")), (("int8",), ("selkey", "sdpa_math"))])
def test_the_command_in_a_row_measures_the_same_case(monkeypatch, tmp_path, formats, names):
    wanted = axes_of(kv_heads=(2,), batches=(3,), formats=formats, implementations=names, heads=(4,), ks=(0.1,), contexts=(96,))
    (case,), _ = sweeps.cases(wanted)
    program, command, *typed = records.reproduce(case, "cpu", 7).split()
    assert (program, command) == ("selkey", "sweep")
    plans = []
    monkeypatch.setattr("selkey.bench.run.run", lambda plan, *_: plans.append(plan))
    monkeypatch.setattr("selkey.bench.summary.show", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(sweep, [*typed, "--no-plots"])
    assert result.exit_code == 0, result.output
    (again,) = plans[0].cases
    assert again == case and set(again.implementations) == set(case.implementations) and plans[0].seed == 7


@pytest.mark.parametrize("name", ["blocks", "mla", "k_sweep"])
def test_the_command_of_bench_measures_the_same_case(monkeypatch, tmp_path, name):
    if name == "k_sweep":
        case = workloads.k_sweep(4096, dtype="bf16")[2]
    else:
        (case,) = getattr(peer_workloads, name)((4096,), (512,), dtype="bf16")
    plans = []
    monkeypatch.setattr("selkey.bench.run.run", lambda plan, *_: plans.append(plan))
    monkeypatch.setattr("selkey.bench.summary.show", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(bench, [*records.reproduce(case, "cpu", 3).split()[2:], "--no-plots"])
    assert result.exit_code == 0, result.output
    assert plans[0].cases == (case,) and plans[0].cases[0].implementations == case.implementations


# Whole runs.


@pytest.fixture
def swept(tmp_path):
    result = measured(*SMALL, "--kv-heads", "2", "--formats", "plain,int8", "--batch", "1,2", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    return tmp_path / "out"


def test_every_case_and_format_is_a_row(swept):
    rows = rows_of(swept)
    assert {row["status"]["state"] for row in rows} == {"ok"}, [row["status"] for row in rows]
    assert len(rows) == 2 * 2 * 2 * 4 == len({(row["case"]["cfg_id"], row["impl"]["name"]) for row in rows})
    bits = {row["impl"]["name"]: (row["case"]["format"], row["case"]["kv_bits"]) for row in rows}
    # 16 codes of a byte and a scale of four: 20 bytes
    assert bits == {"sdpa": (None, 16), "gather": (None, 16), "selkey": (None, 16), "kv_int8": ("int8", 10)}
    assert all(row["case"]["fix"] == ["head_dim"] and row["run"]["cmd"].startswith("selkey sweep ") for row in rows)
    assert all(row["correct"]["ok"] and row["time"]["warm_seconds"] > 0 and "throttled" in row["time"] for row in rows)


def test_resume_measures_what_is_missing(swept):
    path = swept / "records.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:9]) + "\n" + lines[9][:200])
    arguments = [*SMALL, "--kv-heads", "2", "--formats", "plain,int8", "--batch", "1,2", "--out", swept]
    refused = measured(*arguments)
    assert refused.exit_code == 2 and "already holds records.jsonl" in refused.output
    again = measured(*arguments, "--resume")
    assert again.exit_code == 0, again.output
    assert "line 10 of" in again.output and "is cut off" in again.output and "9 rows are there already" in again.output
    found = path.read_text().splitlines()
    assert found[:9] == lines[:9] and found[9] == lines[9][:200], "no line is lost"
    rows, complaints = records.read(path)
    assert len(rows) == len(lines) == len({(row["case"]["cfg_id"], row["impl"]["name"]) for row in rows}) and len(complaints) == 1
    # and a third time there is nothing to do
    before = path.read_bytes()
    third = measured(*arguments, "--resume")
    assert third.exit_code == 0 and path.read_bytes() == before
    # another seed is another measurement
    assert measured(*arguments, "--resume", "--seed", "1", "--time-budget", "0.1").exit_code == 0
    assert len(records.read(path)[0]) == 2 * len(lines)


@pytest.mark.parametrize(
    "change, complaint",
    [
        (lambda row: row["env"].update(device="Abacus, 1 core"), "holds records of Abacus, 1 core"),
        (lambda row: row["env"].update(threads=99), "holds records of 99 threads"),
        (lambda row: row.update(schema_version="7.1"), "line 1 has schema version 7.1"),
    ],
)
def test_records_of_another_machine_are_not_added_to(tmp_path, change, complaint):
    env = machine.environment("cpu")
    case = sweeps.cases(axes_of())[0][0]
    row = records.row(records.run_block("selkey sweep", 0), env, None, case, {"name": "selkey"}, "skip")
    change(row)
    (tmp_path / "records.jsonl").write_text(json.dumps(row))
    result = measured(*SMALL, "--resume", "--out", tmp_path)
    assert result.exit_code == 2 and complaint in result.output.replace("\n", " ") and "choose another folder" in result.output
    assert (tmp_path / "records.jsonl").read_text() == json.dumps(row)


def test_what_was_measured_stays_measured(tmp_path):
    assert measured(*SMALL, "--out", tmp_path).exit_code == 0
    before = (tmp_path / "records.jsonl").read_bytes()
    assert measured(*SMALL, "--out", tmp_path, "--resume", "--max-memory", "1k").exit_code == 0
    assert (tmp_path / "records.jsonl").read_bytes() == before


def test_what_differs_and_what_is_no_row_is_said_in_few_lines(tmp_path, monkeypatch):
    env = machine.environment("cpu")
    row = records.row(
        records.run_block("selkey sweep", 0), env | {"torch": "1.0"}, None, sweeps.cases(axes_of())[0][0], {"name": "x"}, "skip"
    )
    bad = ['{"no": "row"}'] * 6 + [json.dumps(row | change) for change in ({"env": None}, {"impl": {}}, {"case": {}})]
    (tmp_path / "records.jsonl").write_text("\n".join([json.dumps(row), *bad]) + "\n")
    monkeypatch.setattr("selkey.bench.run.run", lambda *_: None)
    result = measured(*SMALL, "--resume", "--out", tmp_path)
    assert result.exit_code == 0 and "1 rows are there already" in result.output
    said = result.stderr.splitlines()
    assert said[0] == f"rows that are there already were measured with torch 1.0 (now {env['torch']})"
    assert said[1].startswith("line 2 of ") and len(said) == 6 and said[5] == "and 5 more such lines"


def test_interruption_says_how_to_go_on(tmp_path, monkeypatch):
    timed, calls = one_case._timed, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return timed(*arguments)

    monkeypatch.setattr(one_case, "_timed", interrupted)
    drawn = []
    monkeypatch.setattr("selkey.bench.plot.draw", lambda rows, folder: drawn.append((len(rows), folder)) or [])
    result = measured(*SMALL[:-1], "--out", tmp_path)
    assert result.exit_code == 130 and f"the same command with --resume --out {tmp_path}" in result.output.replace("\n", " ")
    assert "head_dim fixed" in " ".join(result.output.split()) and drawn == [(len(rows_of(tmp_path)), tmp_path)]


def test_a_hidden_size_without_equal_heads_is_left_out():
    cases, impossible = sweeps.cases(axes_of(heads=(8, 12), fixes=("hidden", "head_dim")))
    assert {(case.n_heads, case.fix) for case in cases} == {(8, ("hidden", "head_dim")), (12, ("head_dim",))}
    (sentence,) = impossible
    assert sentence.startswith("12 heads at --fix hidden: --heads 12 does not divide --hidden 128")


def test_what_became_possible_is_measured(tmp_path):
    first = measured(*SMALL, "--max-memory", "10k", "--out", tmp_path)
    assert first.exit_code == 0, first.output
    states = [row["status"]["state"] for row in rows_of(tmp_path)]
    assert "oom_predicted" in states and "ok" in states
    same = measured(*SMALL, "--max-memory", "10k", "--out", tmp_path, "--resume")
    assert same.exit_code == 0 and len(rows_of(tmp_path)) == len(states)
    assert measured(*SMALL, "--out", tmp_path, "--resume").exit_code == 0
    assert len(rows_of(tmp_path)) == len(states) + states.count("oom_predicted")


def test_a_context_that_no_memory_holds(tmp_path):
    result = measured(*SMALL, "--contexts", "32,1048576M", "--k", "5%", "--batch", "8", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    rows = rows_of(tmp_path)
    assert {(row["case"]["context"], row["status"]["state"]) for row in rows} == {(32, "ok"), (2**40, "oom_predicted")}
    worst = [row for row in rows if row["case"]["context"] == 2**40][0]
    assert worst["mem"]["predicted_bytes"] > 2**40 and "may be used" in worst["status"]["reason"] and worst["time"] is None


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--formats", "plain,int5"], "expected names of plain, bf16, fp8, int8, int4, int2; got 'int5'"),
        (["--implementations", "sdpa,nobody"], "--implementations nobody: there is no such implementation"),
        (["--kv-heads", "3", "--heads", "8"], "8 query heads cannot share 3 KV heads equally"),
        (["--heads", "10", "--fix", "hidden"], "--heads 10 does not divide --hidden 4096"),
        (["--fix", "heads"], "'heads' is not one of"),
        (["--k", "120%"], "got '120%'"),
        (["--max-memory", "much"], "got 'much'"),
        (["--resume"], "--resume needs --out FOLDER"),
    ],
)
def test_bad_options_get_one_clear_line(arguments, complaint):
    result = measured(*arguments)
    assert result.exit_code == 2 and complaint in " ".join(result.output.split()) and "Traceback" not in result.output


# Memory that is not there.


def plan_of(cases, **changes):
    options = {"with_real": False, "dtype": "bf16", "device": "cpu", "seed": 0, "seconds": 0.2, "memory_limit": 2**31}
    return Plan(environment=machine.environment("cpu"), cases=tuple(cases), invocation="selkey sweep", **options | changes)


def recorded(tmp_path, cases, peers=PEERS, **changes):
    writer = records.Writer(tmp_path / "records.jsonl")
    run(plan_of(cases, **changes), peers, writer, lambda *_: None)
    return {(row["case"]["context"], row["impl"]["name"]): row["status"] for row in writer.rows}


def peer(name, attend, **more):
    known = {"NAME": name, "READS": "selected", "backend": lambda device: "test", "extra_bytes": lambda case, device: 0}
    return SimpleNamespace(attend=attend, **known | more)


def test_an_allocation_that_fails_is_a_row_and_the_rest_goes_on(tmp_path):
    first = []

    def later(given):
        """Fails on a fresh list, which only calls that are timed get, of the first case."""
        is_first = given.k.shape[1::2] == (64, 16)
        first.extend([given.indices] if is_first else [])
        if is_first and given.indices is not first[0]:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return PEERS["selkey"].attend(given)

    def at_once(given):
        raise MemoryError("no room")

    case = Case("decode", 2, 2, 2, 16, 16, 64, 8, implementations=("later", "at_once", "selkey"))
    peers = {"later": peer("later", later), "at_once": peer("at_once", at_once), "selkey": PEERS["selkey"]}
    found = recorded(tmp_path, [case, replace(case, context=128)], peers)
    assert {key: status["state"] for key, status in found.items()} == {
        (64, "later"): "error", (64, "at_once"): "error", (64, "selkey"): "ok", (128, "later"): "ok", (128, "at_once"): "error",
        (128, "selkey"): "ok",
    }  # fmt: skip
    assert found[64, "later"]["reason"].startswith("out of memory: RuntimeError: [enforce fail]")
    assert found[64, "at_once"]["reason"] == "out of memory: MemoryError: no room"


def test_keys_that_cannot_be_had_are_rows(tmp_path, monkeypatch):
    from selkey.bench import inputs

    pool = inputs.RandomPool

    def small(nbytes, *others):
        if nbytes > 2**13:
            raise MemoryError("no room")
        return pool(nbytes, *others)

    monkeypatch.setattr(inputs, "RandomPool", small)
    case = Case("decode", 2, 2, 2, 16, 16, 64, 8, implementations=("sdpa", "selkey"))
    found = recorded(tmp_path, [replace(case, context=128), case])
    assert {key: status["state"] for key, status in found.items()} == {
        (128, "sdpa"): "error", (128, "selkey"): "error", (64, "sdpa"): "ok", (64, "selkey"): "ok",
    }  # fmt: skip
    assert "its keys could not be allocated" in found[128, "selkey"]["reason"]


def test_failures_of_memory_are_told_apart():
    assert words.is_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not words.is_out_of_memory(RuntimeError("no such kernel"))


def test_room_is_counted_for_all_copies_at_once():
    case = Case("decode", 8, 8, 8, 64, 64, 4096, 64, implementations=("sdpa", "kv_bf16", "kv_int8"))
    peers = [PEERS[name] for name in case.implementations]
    rows, coded = cost.cache_bytes(case), cost.cache_bytes(case, "int8")
    assert room.too_large(case, peers, "cuda", 2 * rows + coded + 2**17) == {}
    refused = room.too_large(case, peers, "cuda", 2 * rows + 2**17)
    assert list(refused) == ["kv_int8"] and "beside" in refused["kv_int8"]
    assert set(room.too_large(case, peers, "cuda", rows // 2)) == set(case.implementations)


def test_rows_of_a_resumed_run_count_by_state():
    def row(name, state, seed=0):
        return {"case": {"cfg_id": "a"}, "impl": {"name": name}, "run": {"seed": seed}, "status": {"state": state}}

    assert resume.done([row("x", "ok"), row("x", "oom_predicted")]) == {("a", "x", 0): "ok"}
    assert resume.done([row("x", "error"), row("x", "ok"), row("y", "skip", 3)]) == {("a", "x", 0): "ok", ("a", "y", 3): "skip"}


def test_new_workloads_are_opt_in():
    assert {"blocks", "mla"} < set(workloads.WORKLOADS) and not {"blocks", "mla"} & set(workloads.DEFAULT)
    with pytest.raises(ValueError, match="--k 100: --workload blocks reads whole blocks of 64 keys"):
        peer_workloads.blocks((4096,), (100,), dtype="bf16")


def test_no_more_memory_is_promised_than_there_is(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 10**9)
    assert memory.limit(None, "cpu") == (10**9, None) and memory.limit(5 * 10**8, "cpu") == (5 * 10**8, None)
    limit, sentence = memory.limit(9 * 10**10, "cpu")
    assert limit == 10**9 and "90.0 GB" in sentence and "1.00 GB" in sentence
