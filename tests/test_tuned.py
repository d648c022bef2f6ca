"""Measured launch configurations: which file counts, which entry, and that nothing changes where there is none."""

import json
import subprocess
import sys
import time
import warnings
from dataclasses import replace

import pytest

pytest.importorskip("triton")

from selkey.bench import machine  # noqa: E402
from selkey.bench.gpu import tune  # noqa: E402
from selkey.kernels import configs, index_configs, tuned_configs  # noqa: E402
from selkey.kernels.architectures import ARCHITECTURES  # noqa: E402

DEVICE_NAME = "Imagined GPU 9000 (SXM)"
HERE = replace(ARCHITECTURES["sm_90"], device=DEVICE_NAME)
GROUPED = (4, 128, 128, False, 2, HERE, None, True)
GROUPED_KEY = {"pack": 4, "D": 128, "DV": 128, "shares_rows": False, "element_size": 2, "format": None}
CACHED = (configs.launch_config, index_configs.score_config, index_configs.topk_config, tuned_configs._entries)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty `tuned/`; nothing is remembered before or after."""
    monkeypatch.setattr(tuned_configs, "FOLDER", tmp_path)
    for cached in CACHED:
        cached.cache_clear()
    yield tmp_path
    for cached in CACHED:
        cached.cache_clear()


def entry(config, kernel="gather_decode", key=GROUPED_KEY):
    return {"kernel": kernel, "key": key, "config": config, "us": 8.0, "default_us": 10.0}


def write(folder, *entries, **changes):
    file = {"schema_version": "1.0", "device": DEVICE_NAME, "arch": "sm_90", "entries": list(entries)} | changes
    (folder / "imagined-gpu-9000-sxm.json").write_text(json.dumps(file))


def test_the_file_of_a_device_has_the_name_of_its_results_folder():
    for name in (DEVICE_NAME, "NVIDIA H200", "AMD Instinct MI300X"):
        assert tuned_configs.path_of(name).name == machine.slug(name) + ".json"


def test_without_a_file_the_tables_count():
    assert configs.launch_config(*GROUPED) == configs.gather_config(4, 128, 128, False, 2, HERE)
    coded = configs.launch_config(*GROUPED[:6], "int4", True)
    assert coded == configs.coded_config(configs.gather_config(4, 128, 128, False, 2, HERE), HERE)


def test_an_entry_replaces_the_fields_that_it_names_and_no_others(folder):
    write(folder, entry({"block_k": 128, "num_warps": 8}))
    listed = configs.gather_config(4, 128, 128, False, 2, HERE)
    assert configs.launch_config(*GROUPED) == replace(listed, block_k=128, num_warps=8) != listed


@pytest.mark.parametrize(
    "arguments",
    [
        (4, 128, 128, False, 2, HERE, None, False),  # prefill
        (4, 128, 128, False, 2, HERE, "int4", True),
        (8, 128, 128, False, 2, HERE, None, True),
        (4, 128, 128, False, 4, HERE, None, True),
        (4, 128, 128, False, 2, replace(HERE, device="NVIDIA H200"), None, True),
        (4, 128, 128, False, 2, ARCHITECTURES["sm_90"], None, True),  # no device: what `selkey codegen` compiles
    ],
)
def test_an_entry_counts_for_its_own_key_and_device_alone(folder, arguments):
    write(folder, entry({"block_k": 128, "num_warps": 8}))
    assert configs.launch_config(*arguments) == configs.listed_config(*arguments[:-1])


def test_entries_of_the_selection_kernels_are_read(folder):
    score_key = {"HI": 64, "DI": 128, "element_size": 2, "is_single": True}
    write(folder, entry({"block_n": 256}, "index_scores", score_key), entry({"num_warps": 2}, "topk", {"block": 1024, "is_one_tile": True}))
    assert index_configs.score_config(1, 64, 128, 2, HERE).block_n == 256
    assert index_configs.score_config(2, 64, 128, 2, HERE).block_n == 128
    assert index_configs.topk_config(1024, True, HERE).num_warps == 2
    assert index_configs.topk_config(2048, True, HERE).num_warps == 4


@pytest.mark.parametrize(
    "config",
    [
        {"block_k": 2048},  # 128 columns of 2 bytes and two stages in shared memory: 1 MiB of 227 KiB
        {"block_k": 96},
        {"block_k": 8},
        {"block_h": 8},
        {"num_warps": 3},
        {"num_warps": 32},
        {"num_stages": 0},
        {"num_stages": 20},
        {"resident": 0},
        {"precision_of_products": 3},
    ],
    ids=str,
)
def test_what_the_architecture_forbids_is_passed_over(folder, config):
    write(folder, entry(config))
    assert configs.launch_config(*GROUPED) == configs.listed_config(*GROUPED[:-1])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"schema_version": "1.0"}', "KeyError"),
        (None, "schema version is 2.0"),
        ({"device": "NVIDIA H100"}, "measured on NVIDIA H100"),
        ({"arch": "sm_100"}, "measured on .* \\(sm_100\\), this is .* \\(sm_90\\)"),
        ({"entries": [{"kernel": "gather_decode"}]}, "KeyError"),
        ({"entries": [entry({"block_k": "128"})]}, "whole numbers"),
        ({"entries": [entry({"block_k": True})]}, "whole numbers"),
        ({"entries": [entry([128])]}, "AttributeError"),
    ],
)
def test_a_broken_or_foreign_file_is_ignored_with_one_warning(folder, text, reason):
    if isinstance(text, str):
        (folder / "imagined-gpu-9000-sxm.json").write_text(text)
    else:
        write(folder, entry({"block_k": 128}), **({"schema_version": "2.0"} if text is None else text))
    with pytest.warns(RuntimeWarning, match=reason) as caught:
        config = configs.launch_config(*GROUPED)
        configs.launch_config(*GROUPED[:-1], False)
        index_configs.topk_config(1024, True, HERE)
    assert config == configs.listed_config(*GROUPED[:-1])
    assert len(caught) == 1 and "imagined-gpu-9000-sxm.json" in str(caught[0].message)


def test_every_configuration_of_the_tables_is_allowed():
    """A bound that refuses what is known to run would refuse its neighbours too."""
    for architecture in ARCHITECTURES.values():
        for size in (2, 4):
            for pack in (1, 32, 64, 128):
                for D, DV, shares in ((64, 64, False), (128, 128, False), (256, 256, False), (512, 512, False), (576, 512, True)):
                    config = configs.gather_config(pack, D, DV, shares, size, architecture)
                    assert configs.is_allowed(config, architecture, size), (architecture.name, config)
            config = index_configs.score_config(1, 64, 128, size, architecture)
            assert index_configs.is_allowed(config, architecture, size), (architecture.name, config)


def test_nothing_is_read_at_import():
    program = """
import pathlib
read = []
original = pathlib.Path.read_text
pathlib.Path.read_text = lambda self, *words, **more: (read.append(self.name), original(self, *words, **more))[1]
import selkey.kernels.configs, selkey.kernels.index_configs, selkey.kernels.tuned_configs as tuned
assert not [name for name in read if name.endswith(".json")] and tuned._entries.cache_info().currsize == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_second_look_costs_less_than_a_microsecond_and_a_half():
    """As much as before there were files: one look into a cache. Best of many, a busy machine only adds to it."""
    configs.launch_config(*GROUPED)
    best = float("inf")
    for _ in range(50):
        start = time.perf_counter()
        for _ in range(200):
            configs.launch_config(*GROUPED)
        best = min(best, (time.perf_counter() - start) / 200)
    assert best < 1.5e-6


COMMITTED = sorted((tuned_configs.Path(tuned_configs.__file__).parent / "tuned").glob("*.json"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_every_committed_entry_compiles_without_a_spill_and_is_used(path, monkeypatch):
    monkeypatch.setattr(tuned_configs, "FOLDER", path.parent)
    file = json.loads(path.read_text())
    assert path == tuned_configs.path_of(file["device"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuned_configs._entries(file["device"], file["arch"])
    assert tune.rejected(path) == []


def test_what_spills_is_found_by_compiling(tmp_path):
    path = tmp_path / "some.json"
    fine = entry({"num_warps": 8}, "topk", {"block": 512, "is_one_tile": True})
    path.write_text(json.dumps({"arch": "sm_90", "entries": [fine, entry({"num_warps": 1}, key=GROUPED_KEY | {"pack": 16})]}))
    (spilled,) = tune.rejected(path)
    assert "gather_decode" in spilled and "'num_warps': 1" in spilled and "spilled" in spilled
