"""What pyproject.toml cannot say: the wheel has the folder configs/ inside the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["res2net_dense*"]), "res2net_dense.configs"],
    package_dir={"res2net_dense.configs": "configs"},
    package_data={"res2net_dense.configs": ["**/*.yaml"]},
)
