"""What selkey is and needs, asked without importing any of it: also where it was not installed, or its packages were not."""

import importlib.util
import re
from importlib import metadata
from pathlib import Path

# module → what pip calls it; those of `pyproject.toml`
NEEDED = {
    "torch": "torch", "triton": "triton", "numpy": "numpy", "matplotlib": "matplotlib", "click": "click", "rich": "rich",
    "psutil": "psutil", "safetensors": "safetensors", "yaml": "PyYAML", "jinja2": "jinja2",
}  # fmt: skip


def version():
    """Of selkey: what is installed, or what the source tree says."""
    try:
        return metadata.version("selkey")
    except metadata.PackageNotFoundError:
        project = Path(__file__).resolve().parents[1] / "pyproject.toml"
        found = re.search(r'^version = "(.+)"$', project.read_text(encoding="utf-8"), re.MULTILINE) if project.exists() else None
        return found[1] if found else "unknown"


def sentence(module):
    """What to do where a module cannot be imported: names all that are missing; None where it is none of ours."""
    if module not in NEEDED:
        return None
    names = [package for name, package in NEEDED.items() if name == module or not _is_there(name)]
    return f"selkey needs packages that are not installed: {', '.join(names)}. Install them: pip install {' '.join(names)}"


def _is_there(name):
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
