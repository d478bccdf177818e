"""Known holes in the installed packages, by pip-audit; and a plain word where it could look nothing up."""
import json
import subprocess
import sys


def verdict(report: dict) -> tuple[str, int]: # what to say; exit status
    "What pip-audit's report comes to."
    looked_up = [d for d in report["dependencies"] if "vulns" in d]
    holes = [f"{d['name']} {d['version']}: {v['id']}, mended in {', '.join(v['fix_versions']) or 'no version yet'}" for d in looked_up for v in d["vulns"]]
    if not looked_up: return "audit: nothing is known here of any installed package; run make audit where the package index can be reached.", 2
    return "\n".join([*holes, f"{len(looked_up)} of {len(report['dependencies'])} packages looked up, {len(holes)} known holes"]), int(bool(holes))


if __name__ == "__main__":
    done = subprocess.run([sys.executable, "-m", "pip_audit", "--skip-editable", "--format", "json", "--progress-spinner", "off"], capture_output=True, text=True)
    try: text, status = verdict(json.loads(done.stdout))
    except ValueError: text, status = f"audit: the package index cannot be reached from here ({(done.stderr.strip().splitlines() or ['no answer'])[-1].split(':')[0]}).", 2
    print(text)
    sys.exit(status)
