"""The report: one page that needs nothing beside it, from whole, broken and foreign files."""

import base64
import json
import re
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner
from plot_rows import CEILINGS, row

from selkey.bench import records, report, report_files, report_results, report_tables
from selkey.bench.commands.report import report as command


class Page(HTMLParser):
    """Addresses, texts and balance of a page."""

    def __init__(self, html):
        super().__init__()
        self.addresses, self.open, self.text = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "srcset", "href", "poster", "action")]
        if tag not in ("meta", "img", "source", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def rows():
    found = [row("k_sweep", name, context=32768, k=k, us=us) for k in (256, 4096) for name, us in (("sdpa", 2000.0), ("selkey", 500.0))]
    reason = "pip install <flash-thing> & try again"
    skipped = row("k_sweep", "flash_thing", context=32768, k=256, state="skip", time=None, model=None, mem=None)
    skipped["status"]["reason"] = reason
    return [*found, skipped, skipped | {"case": skipped["case"] | {"cfg_id": "other", "k": 4096}}]


@pytest.fixture(scope="module")
def folder(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    (folder / "records.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows) + '{"half": a li\n')
    (folder / "old.jsonl").write_text('{"schema_version": "0.3"}\n')
    case = {"case": "MHA", "origin": "computed", "value": 4.29, "unit": "GB", "arithmetic": "2 · 32", "agrees": True}
    claim = {"id": "kv", "statement": "8 heads need 4.29 GB", "verdict": "reproduced", "claimed": "4.29 GB", "note": None, "cases": [case]}
    (folder / "claims.jsonl").write_text(json.dumps(claim) + "\n" + json.dumps(claim | {"id": "other", "cases": []}) + "\n")
    figure = {
        "id": "gpt2",
        "published": 124e6,
        "predicted": 124439808.0,
        "unit": "parameters",
        "ratio": 1.0035,
        "reproduced": True,
        "source": "s",
    }
    (folder / "validate.json").write_text(json.dumps([figure]))
    (folder / "tuned.json").write_text('{"sm_90": {}}')
    (folder / "ceilings.json").write_text(
        json.dumps(
            CEILINGS
            | {"schema_version": "1.0", "env": {"device": "Test device"}, "copy_gbps": 90.0}
            | {"curves": {"read": [[2**20, 400.0]], "copy": [], "matrix": {"bf16": [[512, 2.0]]}, "gather": {"cold": [], "warm": []}}}
        )
    )
    return folder


@pytest.fixture(scope="module")
def made(folder):
    result = CliRunner().invoke(command, [str(folder), "--out", str(folder / "new" / "page.html")])
    assert result.exit_code == 0, result.output
    return (folder / "new" / "page.html").read_text(encoding="utf-8"), result.output


def test_page_needs_nothing_beside_it(made):
    html, _ = made
    page = Page(html)
    assert not page.open
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert not re.search(r"<script|@import|url\(", html)
    anchors = {address[1:] for address in page.addresses if address.startswith("#")}
    assert anchors == {identity for identity in re.findall(r' id="([^"]+)"', html)} and len(anchors) > 3


def test_pictures_are_light_and_dark(made):
    html, _ = made
    light = re.findall(r'<img src="data:image/png;base64,([^"]+)"', html)
    dark = re.findall(r'<source srcset="data:image/png;base64,([^"]+)"', html)
    assert len(light) == len(dark) >= 3 and html.count('media="(prefers-color-scheme: dark)"') == len(dark)
    for one, other in zip(light, dark, strict=True):
        pictures = base64.b64decode(one), base64.b64decode(other)
        assert all(picture[:4] == b"\x89PNG" for picture in pictures) and pictures[0] != pictures[1]
    assert "Speed-up against the share of the keys" in html and "below 1× selecting costs time" in html
    assert html.count("@media (prefers-color-scheme: dark)") == 1 and 'content="width=device-width' in html


def test_page_says_what_was_found_and_what_was_not(made, rows):
    html, output = made
    page = " ".join(" ".join(Page(html).text).split())
    wanted = ("Test device: measured", "100 GB/s", "selkey x 32768", "0.500 ms (4.0×)", "flash_thing", "k_sweep-8-32768-256 and 1 more")
    for part in (*wanted, "2 reproduced", "2 · 32 = 4.29 GB", "1 of 1 lie within", "Test device: ceilings", "abc"):
        assert part in page, part
    assert "pip install &lt;flash-thing&gt; &amp; try again" in html and "<flash-thing>" not in html
    for part in ("line 7 is not a record", "schema version 0.3", "tuned.json"):
        assert part in output and part in page, part


def test_tables(rows):
    (table,) = report_results.results(rows)
    assert table.head == ("k", "256", "4k") and table.lines[1] == ("selkey", "0.500 ms (4.0×)", "0.500 ms (4.0×)")
    residuals = report_tables.residuals(rows)
    assert [(line[0], line[1], line[2], line[3]) for line in residuals.lines] == [
        ("time", "dense SDPA", 2, "1.200"), ("time", "selkey", 2, "1.200"),
        ("memory", "dense SDPA", 2, "0.952"), ("memory", "selkey", 2, "0.952"),
    ]  # fmt: skip
    assert residuals.lines[0][-1] == "0% within 10%, 100% within 30%" and residuals.lines[2][-1] == "0% within 2%, 100% within 10%"
    (trouble,) = report_tables.troubles(rows).lines
    assert trouble[0] == "skip" and trouble[2].endswith("and 1 more")
    (one,) = report_tables.modelled([{"case": {"workload": "fit", "k": 5, "n": 1}, "model": {"tok_s": 2.0}, "mem": None}])
    assert one.title == "Modelled: fit" and one.lines == [("fit", "5", "1", "2")]


def test_the_latest_of_a_case_counts(rows, tmp_path):
    again = rows[1] | {
        "run": rows[1]["run"] | {"time": "2027-01-01", "uid": "later"},
        "time": rows[1]["time"] | {"t_us": rows[1]["time"]["t_us"] | {"p50": 250.0}},
    }
    for name, some in (("b.jsonl", rows), ("a.jsonl", [again])):
        (tmp_path / name).write_text("".join(json.dumps(one) + "\n" for one in some))
    found = report_files.gather([tmp_path])
    assert len(found.rows) == len(rows) and "1 rows were measured again" in found.complaints[-1]
    assert {line[0]: line[1] for line in report_results.results(found.rows)[0].lines}["selkey"] == "250 µs (8.0×)"


def test_devices_and_origins_have_sections_of_their_own(rows, monkeypatch):
    monkeypatch.setattr(report.plot, "figures", lambda rows: [])
    other = rows[1] | {"env": rows[1]["env"] | {"device": "Another"}}
    promised = rows[1] | {"origin": "modelled", "case": {"workload": "fit", "k": 1}}
    html = report.page(report_files.Found([promised, *rows, other], [], [], [], [], ["x"], []))
    assert re.findall(r"<h2[^>]*>([^<]+)", html) == ["Test device: measured", "Another: measured", "Test device: modelled"]


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"schema_version": "9.0"}\n', "schema version 9.0"),
        ("not even JSON\n", "line 1 is not a record"),
        ("", "holds no record"),
        (b"\xff\xfe\x00", "some.jsonl"),
    ],
)
def test_bad_input_is_a_line(tmp_path, content, message):
    path = tmp_path / "some.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for argument in (path, tmp_path):
        result = CliRunner().invoke(command, [str(argument)])
        assert result.exit_code == 1 and message in result.output and len(result.output.strip().split("\n")) == 1, result.output
    assert not (tmp_path / "report.html").exists()


def test_records_of_an_earlier_minor_version_are_filled_up(rows, tmp_path):
    old = [{block: one[block] for block in records.BLOCKS if block not in ("stream", "cache", "parallel", "quality")} for one in rows]
    (tmp_path / "old.jsonl").write_text("".join(json.dumps(one) + "\n" for one in old))
    assert "k_sweep" in report.page(report_files.gather([tmp_path / "old.jsonl"]))


def test_nothing_at_all(tmp_path):
    result = CliRunner().invoke(command, [str(tmp_path)])
    assert result.exit_code == 1 and "holds no records" in result.output
    assert CliRunner().invoke(command, [str(tmp_path / "none")]).exit_code == 2
    (tmp_path / "ceilings.json").write_text('{"read_gbps": 1')
    broken = CliRunner().invoke(command, [str(tmp_path / "ceilings.json")])
    assert broken.exit_code == 1 and "is not JSON" in broken.output


def test_out_is_never_a_file_that_is_no_report(rows, tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows[:1]))
    other = tmp_path / "thesis.html"
    other.write_text("<html>years of work</html>")
    for target in (path, other):
        before = target.read_bytes()
        result = CliRunner().invoke(command, [str(path), "--out", str(target)])
        assert result.exit_code == 1 and target.name in result.output and target.read_bytes() == before
    page = tmp_path / "page.html"
    report.write(report.page(report_files.Found([], [], [], [], [], ["x"], [])), page)
    assert report.check_target(page, [path]) is None  # an earlier page may be written again


def test_lines_that_are_no_text_cost_themselves_only(rows, tmp_path):
    claim = json.dumps({"id": "a", "statement": "s", "verdict": "reproduced", "cases": []}).encode()
    (tmp_path / "claims.jsonl").write_bytes(claim + b"\n\xff\xfe\n" + claim + b"\n")
    (tmp_path / "records.jsonl").write_bytes(json.dumps(rows[0]).encode() + b"\n\xff\xfe\x00\n")
    (tmp_path / "validate.json").write_bytes(b"[\n\xff]")
    found = report_files.gather([tmp_path])
    assert len(found.claims) == 2 and len(found.rows) == 1
    for part in ("claims.jsonl: line 2", "records.jsonl: line 2", "validate.json: line 2"):
        assert any(part in complaint for complaint in found.complaints), (part, found.complaints)
