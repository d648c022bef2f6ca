"""What is installed, what an import brings along, and that the folder `kernels/` stands in nobody's way."""

import os
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("python", "kernels", "bench", "setup.py", "pyproject.toml", "README.md", "LICENSE")


def run_python(program, cwd, path=(), **environment):
    """stdout of `program`, run in `cwd` with `path` in front of the installed packages.

    Without site (-S) no .pth file is read, so that an editable install of selkey itself is out of the way.
    """
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    clean |= {"PYTHONPATH": os.pathsep.join(map(str, [*path, *site.getsitepackages()]))} | environment
    result = subprocess.run([sys.executable, "-S", "-c", program], cwd=cwd, env=clean, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def pip(*arguments, cwd):
    pytest.importorskip("pip")
    command = [sys.executable, "-m", "pip", *arguments, "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr


def files_below(folder):
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def source_tree(tmp_path_factory):
    """A copy of the sources, far from the installed package and from older builds."""
    tree = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build"))
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, tree / name)
    return tree


@pytest.fixture(scope="module")
def unpacked_wheel(source_tree, tmp_path_factory):
    wheels, unpacked = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("unpacked")
    pip("wheel", "--wheel-dir", str(wheels), ".", cwd=source_tree)
    (wheel,) = wheels.glob("selkey-*-py3-none-any.whl")
    zipfile.ZipFile(wheel).extractall(unpacked)
    return unpacked


def test_the_wheel_holds_every_module_of_the_three_folders(unpacked_wheel):
    packed = files_below(unpacked_wheel / "selkey")
    expected = {path.relative_to("selkey") for path in files_below(ROOT / "python") if path.parts[0] == "selkey"}
    for folder in ("kernels", "bench"):
        expected |= {folder / path for path in files_below(ROOT / folder) if path.parts[0] != "results"}
    modules = {path for path in expected if path.suffix == ".py"}
    assert Path("kernels/primitives.py") in modules and Path("functional.py") in modules
    assert modules - packed == set()
    assert packed - expected == set()


def test_the_wheel_holds_the_data_that_modules_read(unpacked_wheel):
    packed = files_below(unpacked_wheel / "selkey")
    data = {"kernels" / path for path in files_below(ROOT / "kernels") if path.suffix == ".json"}
    if (ROOT / "bench" / "data").is_dir():
        data |= {Path("bench/data") / path for path in files_below(ROOT / "bench" / "data")}
    assert data - packed == set()


def test_the_wheel_installs_nothing_beside_selkey(unpacked_wheel):
    names = {path.name for path in unpacked_wheel.iterdir()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"selkey"}


IMPORT_ALL_FOLDERS = """
import selkey, selkey.reference, selkey.kernels.primitives, selkey.bench.cost
for module in (selkey, selkey.reference, selkey.kernels.primitives, selkey.bench.cost):
    print(module.__file__)
"""


def assert_imports_from(folder, output):
    files = [Path(line) for line in output.splitlines()]
    assert len(files) == 4 and all(file.is_relative_to(folder) for file in files), files


def test_the_wheel_works_on_its_own(unpacked_wheel, tmp_path):
    pytest.importorskip("triton")
    assert_imports_from(unpacked_wheel, run_python(IMPORT_ALL_FOLDERS, tmp_path, [unpacked_wheel]))


def test_the_source_tree_works_with_nothing_but_its_python_folder_on_the_path(source_tree, tmp_path):
    pytest.importorskip("triton")
    assert_imports_from(source_tree, run_python(IMPORT_ALL_FOLDERS, tmp_path, [source_tree / "python"]))


def test_an_editable_install_finds_the_three_folders_and_files_added_later(source_tree, tmp_path):
    pytest.importorskip("triton")
    pip("install", "--prefix", str(tmp_path), "--ignore-installed", "--editable", ".", cwd=source_tree)
    (folder,) = {path.parent for path in tmp_path.rglob("*.pth")}
    later = source_tree / "kernels" / "added_later.py"
    later.touch()
    program = f"import site; site.addsitedir({str(folder)!r}); import selkey.kernels.added_later\n" + IMPORT_ALL_FOLDERS
    assert_imports_from(source_tree, run_python(program, tmp_path, [folder]))
    later.unlink()


def test_importing_selkey_imports_nothing_heavy_but_torch(tmp_path):
    program = "import sys, torch; before = set(sys.modules); import selkey; print(*sorted(set(sys.modules) - before))"
    added = {name.partition(".")[0] for name in run_python(program, tmp_path, [ROOT / "python"]).split()}
    assert "selkey" in added
    assert added & {"triton", "transformers", "matplotlib", "click", "rich", "numpy", "psutil"} == set()


def test_a_backend_on_the_cpu_needs_no_triton(tmp_path):
    program = """
import sys
sys.modules["triton"] = None
import torch, selkey
print(selkey.attention(torch.ones(1, 1, 2, 16), torch.ones(1, 3, 1, 16), None, torch.zeros(1, 1, 1, 2, dtype=torch.int32)).sum().item())
"""
    assert float(run_python(program, tmp_path, [ROOT / "python"])) == 32


def test_the_folder_kernels_is_not_taken_for_the_package_of_that_name():
    pytest.importorskip("transformers")
    program = f"""
import selkey, selkey.kernels.primitives
import importlib.util
import transformers.integrations.hub_kernels
from transformers.utils.import_utils import _is_package_available
is_ours = {str(ROOT / "kernels")!r} in str(importlib.util.find_spec("kernels"))
print("believes" if is_ours and _is_package_available("kernels", return_version=True)[0] else "does not believe")
"""
    assert run_python(program, ROOT, [ROOT / "python", ROOT], HF_HUB_OFFLINE="1") == "does not believe"


def test_ci_runs_make_test_and_make_test_runs_every_test():
    ci = ROOT / ".ci" / "run"
    assert os.access(ci, os.X_OK) and "make test" in ci.read_text().splitlines()
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    commands = subprocess.run(["make", "--dry-run", "test"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (command,) = [line for line in commands.splitlines() if "pytest" in line]
    assert " -k " not in command and "tests/" not in command and "--ignore" not in command
