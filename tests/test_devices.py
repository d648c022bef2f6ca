"""Device figures: their sources, the names of drivers, and a device that was measured."""

import json

import pytest

from selkey.bench import devices
from selkey.bench.devices import DEVICES, datasheet, device, from_ceilings, reported_as
from selkey.bench.sourced import KINDS

# GB/s, bf16 TFLOP/s, operations a byte
PEAKS = {
    "a100-80g-sxm": (2039, 312, 153),
    "h100-sxm": (3350, 989, 295),
    "h200-sxm": (4800, 989, 206),
    "b200": (7700, 2250, 292),
    "rtx-4090": (1008, 165.2, 164),
    "rtx-5090": (1792, 209.5, 117),
    "rtx-pro-6000": (1792, 503.8, 281),
    "rtx-pro-6000-server": (1598, 467.8, 293),
    "l40s": (864, 362.05, 419),
    "mi300x": (5300, 1307.4, 247),
    "v100-sxm2-32g": (900, 125, 139),
}
DRIVERS = {
    "NVIDIA A100-SXM4-80GB": "a100-80g-sxm",
    "NVIDIA H100 80GB HBM3": "h100-sxm",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H200": "h200-sxm",
    "NVIDIA B200": "b200",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "rtx-pro-6000",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "rtx-pro-6000-server",
    "NVIDIA L4": "l4",
    "NVIDIA L40S": "l40s",
    "NVIDIA A10": "a10",
    "AMD Instinct MI300X": "mi300x",
}
# other cards that are called nearly so: a borrowed number is worse than none
STRANGERS = (
    "NVIDIA GB200", "NVIDIA H200 NVL", "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A10G", "NVIDIA L40",
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "NVIDIA A100-SXM4-40GB", "AMD EPYC 9654, 2 cores",
)  # fmt: skip


@pytest.mark.parametrize("name", PEAKS)
def test_peaks(name):
    gbps, tflops, ridge = PEAKS[name]
    found = device(name)
    assert (found.read_gbps.value, found.bf16_tflops.value) == (gbps, tflops)
    assert round(found.bf16_tflops.value * 1e3 / found.read_gbps.value) == ridge


@pytest.mark.parametrize("name", DEVICES)
def test_every_figure_has_kind_and_source(name):
    figures = device(name).figures()
    assert {"memory_bytes", "read_gbps", "bf16_tflops", "l2_bytes", "multiprocessors", "watts"} <= set(figures)
    assert all(figure.kind in KINDS and figure.source and figure.value > 0 for figure in figures.values())
    assert 2**34 < figures["memory_bytes"].value < 2**38


def test_there_are_enough_and_names_agree():
    assert len(DEVICES) >= 14 and all(each.name == name for name, each in DEVICES.items())


def test_memory_is_counted_in_bytes():
    # 97,887 MiB and 80 GiB
    assert device("rtx-pro-6000").memory_bytes.value == pytest.approx(102.6e9, rel=1e-3)
    assert device("a100-80g-sxm").memory_bytes.value == 80 * 2**30


def test_derived_rates_say_how():
    # SMs × operations × GHz
    for name, sms, operations, clock in (("rtx-pro-6000", 188, 1024, 2.617), ("rtx-5090", 170, 512, 2.407), ("rtx-3090", 82, 512, 1.695)):
        rate = device(name).bf16_tflops
        assert rate.kind == "derived" and rate.value == pytest.approx(sms * operations * clock / 1e3, rel=2e-3)


@pytest.mark.parametrize("name", DRIVERS)
def test_drivers_names(name):
    assert reported_as(name) is device(DRIVERS[name])
    assert datasheet(name)["read_gbps"] == device(DRIVERS[name]).read_gbps.value


@pytest.mark.parametrize("name", STRANGERS)
def test_no_figure_is_borrowed(name):
    assert reported_as(name) is None and datasheet(name) is None


def test_unknown_device_is_told_to_measure():
    with pytest.raises(ValueError, match=r"unknown device 'h100': nearest: h100-sxm, h100-pcie.*`selkey ceilings --out FILE`"):
        device("h100")


def ceilings(**changes):
    env = {"device": "Some Card, 4 cores", "memory_bytes": 2**34, "last_cache_bytes": 2**25, "cores": 4}
    return {"schema_version": "1.0", "env": env, "read_gbps": 21.5, "matrix_tflops": {"fp32": 0.3, "bf16": 0.9}} | changes


def test_a_measured_device(tmp_path):
    path = tmp_path / "ceilings.json"
    path.write_text(json.dumps(ceilings()))
    found = from_ceilings(path)
    assert (found.name, found.title) == ("some-card-4-cores", "Some Card, 4 cores")
    assert (found.read_gbps.value, found.bf16_tflops.value, found.memory_bytes.value) == (21.5, 0.9, 2**34)
    assert {figure.kind for figure in found.figures().values()} == {"measured"} and found.watts is None
    path.write_text(json.dumps(ceilings(matrix_tflops={"fp32": 0.3})))
    assert "fp32" in from_ceilings(path).bf16_tflops.source and from_ceilings(path).dtype == "fp32"


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", "{}", "9" * 5000, "[" * 100_000, 
        *(json.dumps(ceilings(matrix_tflops=rates)) for rates in ({}, {"bf16": "1"}, [1], None)),
        *(json.dumps(ceilings(read_gbps=rate)) for rate in ("fast", "20.5", True, None, [1], 0, 1e-320, 1e300, float("nan"))),
        *(json.dumps(ceilings(env={"device": device, "memory_bytes": 2**34})) for device in (None, [], 3, " ", "a\nb")),
        *(json.dumps(ceilings(env={"device": "Card", "memory_bytes": memory})) for memory in ("16G", True, 1, -1)),
        json.dumps(ceilings(env={"device": "Card", "memory_bytes": 2**34, "cores": "4"})),
    ],
)  # fmt: skip
def test_what_holds_no_ceilings_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "ceilings.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="selkey ceilings --out FILE") as caught:
        from_ceilings(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        from_ceilings(tmp_path / "none.json")


def test_sectors():
    assert devices.SECTOR_BYTES == {"cuda": 32, "cpu": 64}


def test_a_device_without_bf16_says_so():
    assert {each.name for each in DEVICES.values() if each.dtype != "bf16"} == {"v100-sxm2-32g"}


def test_prices_have_a_place_and_a_time():
    prices = {name: each.price_per_hour for name, each in DEVICES.items() if each.price_per_hour}
    assert prices["a100-80g-sxm"].value == prices["v100-sxm2-32g"].value == 1.5
    assert all("20" in price.source or "undated" in price.source for price in prices.values())
