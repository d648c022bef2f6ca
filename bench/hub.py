"""The folder `kernels/` in the form that the Hugging Face kernels hub publishes: `make hub`, or `python -m selkey.bench.hub FOLDER`.

    build.toml flake.nix CARD.md      what the hub's own builder reads
    LICENSE                           that of this repository
    torch-ext/selkey/                 the sources, with `published.py` as their `__init__`
    build/torch-<backend>/            a variant that is loaded as it is: the same files, metadata.json, and selkey/ for old loaders

A Triton kernel is compiled where it runs, so that a variant is a copy and no build. Its id, which is the name of the loaded module and of
its operators, holds a digest of the sources: two versions never meet under one name.
"""

import base64
import hashlib
import json
import shutil
import sys
from pathlib import Path

KERNELS = Path(__file__).resolve().parents[1] / "kernels"
FACE = "published.py"
LICENSE = KERNELS.parent / "LICENSE"
BUILDER_FILES = ("build.toml", "flake.nix", "CARD.md")
_BESIDE = {*BUILDER_FILES, FACE, "README.md"}
# a package of the same name inside the variant, which older loaders look for
_FOR_OLD_LOADERS = '''"""For loaders that look for the package inside the variant: the same module, under its own name."""

import importlib.util
import json
import sys
from pathlib import Path

_variant = Path(__file__).parents[1]
_name = json.loads((_variant / "metadata.json").read_text())["id"]
if _name not in sys.modules:
    _spec = importlib.util.spec_from_file_location(_name, _variant / "__init__.py")
    sys.modules[_name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_name])
globals().update({name: value for name, value in vars(sys.modules[_name]).items() if not name.startswith("__")})
'''


def assemble(folder):
    """Write the tree that is published.

    Args:
        folder: must not exist; nothing is overwritten.

    Returns:
        list of the variants' folders.

    Raises:
        FileExistsError: the folder is there. FileNotFoundError: `kernels/` is not that of a source tree, or LICENSE is gone.
    """
    import tomllib  # of Python 3.11 and later

    folder = Path(folder)
    missing = [path for path in (*(KERNELS / name for name in (*BUILDER_FILES, FACE)), LICENSE) if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{missing[0]} is missing: the tree is assembled from a checkout, not from an installed package")
    if folder.exists():
        raise FileExistsError(f"{folder} exists: choose another folder, nothing is overwritten")
    general = tomllib.loads((KERNELS / "build.toml").read_text())["general"]
    folder.mkdir(parents=True)
    for path in (*(KERNELS / name for name in BUILDER_FILES), LICENSE):
        shutil.copyfile(path, folder / path.name)
    module = general["name"].replace("-", "_")
    sources = folder / "torch-ext" / module
    _copy_sources(sources)
    digest = hashlib.sha256(json.dumps(file_digests(sources)).encode()).hexdigest()[:10]
    return [_variant(folder, general, module, backend, digest) for backend in general["backends"]]


def file_digests(folder):
    """File → base64 of its SHA-256, as the hub's metadata has it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "metadata.json")
    return {path.relative_to(folder).as_posix(): base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode() for path in files}


def _copy_sources(target):
    for path in sorted(KERNELS.rglob("*")):
        name = path.relative_to(KERNELS)
        if path.suffix in (".py", ".json") and name.as_posix() not in _BESIDE and "__pycache__" not in name.parts:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)
    shutil.copyfile(KERNELS / FACE, target / "__init__.py")


def _variant(folder, general, module, backend, digest):
    variant = folder / "build" / f"torch-{backend}"
    shutil.copytree(folder / "torch-ext" / module, variant)
    old = variant / module / "__init__.py"
    old.parent.mkdir()
    old.write_text(_FOR_OLD_LOADERS)
    metadata = {
        "id": f"_{module}_{backend}_{digest}", "name": general["name"], "version": general["version"], "license": general["license"],
        "python-depends": [], "backend": {"type": backend}, "digest": {"algorithm": "sha256", "files": file_digests(variant)},
    }  # fmt: skip
    (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    return variant


def main(arguments):
    if len(arguments) != 1:
        sys.exit("usage: python -m selkey.bench.hub FOLDER")
    try:
        for variant in assemble(arguments[0]):
            print(f"written   {variant}")
    except OSError as problem:
        sys.exit(f"Error: {problem}")


if __name__ == "__main__":
    main(sys.argv[1:])
