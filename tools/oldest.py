"""The lower ends of the ranges in settings.ini, as constraints for pip: what `make test-oldest` installs."""
import re
from configparser import ConfigParser
from pathlib import Path


def oldest(requirements: str) -> list[str]:
    "Each package at the oldest version that is allowed; what has no lower end is left out."
    return [f"{m[1]}=={m[2]}" for r in requirements.split() if (m := re.match(r"([\w-]+)>=([\d.]+)", r))]


if __name__ == "__main__":
    cfg = ConfigParser(delimiters=["="])
    cfg.read(Path(__file__).resolve().parent.parent / "settings.ini", encoding="utf-8")
    print("\n".join(oldest(cfg["DEFAULT"]["requirements"])))
