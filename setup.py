"""Packaging reads everything from settings.ini, the one place where nbdev and pip agree."""
from configparser import ConfigParser

from setuptools import find_packages, setup

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
    packages=find_packages(include=["cmlfa", "cmlfa.*"]),
    package_data={"cmlfa": ["py.typed", "models/*/*"]},
    install_requires=cfg["requirements"].split(),
    extras_require={"dev": f"{cfg['dev_requirements']} {cfg['milvus_requirements']} {cfg['page_requirements']} {cfg['docs_requirements']}".split(), "milvus": cfg["milvus_requirements"].split(), "page": cfg["page_requirements"].split(), "docs": cfg["docs_requirements"].split()},
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
    },
)
