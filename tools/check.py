"""Is the package what nbdev_export makes of the notebooks, and README.md what the index says? Leaves the tree as it is."""
import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from readme import ROOT, readme

WANTED = ["nbs", "cmlfa", "settings.ini", "setup.py", "pyproject.toml", "README.md"]


def export_differs() -> list[str]:
    "Modules that nbdev_export would change, tried on a copy."
    with tempfile.TemporaryDirectory() as tmp:
        for name in WANTED:
            source = ROOT / name
            if source.is_dir(): shutil.copytree(source, Path(tmp) / name, ignore=shutil.ignore_patterns("__pycache__"))
            else: shutil.copy(source, tmp)
        subprocess.run([Path(sys.executable).with_name("nbdev_export")], cwd=tmp, check=True)
        ours, made = ({p.name for p in (base / "cmlfa").glob("*.py")} for base in (ROOT, Path(tmp)))
        both = sorted(ours & made)
        return sorted(ours ^ made) + filecmp.cmpfiles(ROOT / "cmlfa", Path(tmp) / "cmlfa", both, shallow=False)[1]


if __name__ == "__main__":
    problems = [f"cmlfa/{name} is not what the notebooks export: run nbdev_export, or nbdev_update after an edit of the module" for name in export_differs()]
    if (ROOT / "README.md").read_text(encoding="utf-8") != readme():
        problems.append("README.md is not what nbs/index.ipynb says: run python tools/readme.py")
    print("\n".join(problems) or "cmlfa/ and README.md agree with the notebooks")
    sys.exit(bool(problems))
