"""Packaging reads everything from settings.ini, the one place where nbdev and pip agree."""
import sys
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).resolve().parent / "tools"))
from fold import write_stubs


class Build(build_py):
    "The package with stubs for the classes that grow in several cells, which type checkers cannot follow."
    def run(self):
        super().run()
        if not self.editable_mode: write_stubs(Path(self.build_lib) / "cmlfa")


cfg = ConfigParser(delimiters=["="])
cfg.read("settings.ini", encoding="utf-8")
cfg = cfg["DEFAULT"]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author=cfg["author"],
    keywords=cfg["keywords"].split(),
    python_requires=">=" + cfg["min_python"],
    cmdclass={"build_py": Build},
    packages=find_packages(include=["cmlfa", "cmlfa.*"]),
    package_data={"cmlfa": ["py.typed", "models/*/*"]},
    install_requires=cfg["requirements"].split(),
    extras_require={"dev": f"{cfg['dev_requirements']} {cfg['milvus_requirements']} {cfg['page_requirements']} {cfg['docs_requirements']}".split(), "milvus": cfg["milvus_requirements"].split(), "page": cfg["page_requirements"].split(), "docs": cfg["docs_requirements"].split()},
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
    },
)
