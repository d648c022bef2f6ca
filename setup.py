"""Three folders, one package: `kernels/` and `bench/` are installed as `selkey.kernels` and `selkey.bench`."""

from setuptools import find_namespace_packages, find_packages, setup

FOLDERS = ("kernels", "bench")

packages = find_packages("python")
package_dir = {"": "python"}
for folder in FOLDERS:
    package_dir[f"selkey.{folder}"] = folder
    packages += [f"selkey.{folder}", *(f"selkey.{folder}.{sub}" for sub in find_namespace_packages(folder, exclude=["results*"]))]

setup(packages=packages, package_dir=package_dir)
