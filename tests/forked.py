"""Commands as processes of their own that start at once: one process imports everything, and forks.

A Python process that imports PyTorch needs seconds before it does anything, and there are hundreds of them in these tests.
Here a command is forked from a process that has only imported; from there on it is any process: its own arguments, folder, output, signals, exit status."""
import atexit
import contextlib
import gc
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from configparser import ConfigParser
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
from offline import stay_here

BIN = Path(sys.executable).parent


def entries():
    "Command -> (module, function), as settings.ini tells the installer."
    cfg = ConfigParser(delimiters=["="])
    cfg.read(Path(__file__).resolve().parent.parent / "settings.ini", encoding="utf-8")
    return {name: target.split(":") for name, target in (line.split("=") for line in cfg["DEFAULT"]["console_scripts"].split())}


ENTRIES = entries()


class Command:
    "A running command; what it says goes to files. The methods are those of subprocess.Popen."
    parent = None

    def __init__(self, name, *args, cwd, session=False):
        "`name`: a console script, or python with -c and code."
        self.args, self.returncode = [name, *map(str, args)], None
        self.folder = Path(tempfile.mkdtemp(prefix="command"))
        for name in ("stdout", "stderr"): (self.folder / name).touch()
        if Command.parent is None: Command.parent = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | dict(OMP_NUM_THREADS="1"))
        print(json.dumps(dict(argv=self.args, cwd=str(cwd), folder=str(self.folder), session=session)), file=Command.parent.stdin, flush=True)
        self.pid = int(Command.parent.stdout.readline() or -1)
        assert self.pid > 0, "the process that forks has ended: do all commands' modules import?"

    def poll(self):
        if self.returncode is None and (file := self.folder / "status").exists():
            self.returncode = int(file.read_text())
            self.stdout, self.stderr = ((self.folder / name).read_text() for name in ("stdout", "stderr"))
            shutil.rmtree(self.folder)
        return self.returncode

    def said(self, words):
        "Has it printed this by now?"
        return words in (self.stdout if self.poll() is not None else (self.folder / "stdout").read_text())

    def wait(self, timeout=400):
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill()
                raise subprocess.TimeoutExpired(self.args, timeout, *((self.folder / name).read_text() for name in ("stdout", "stderr")))
            time.sleep(.005)
        return self.returncode

    def communicate(self, timeout=400):
        self.wait(timeout)
        return self.stdout, self.stderr

    def send_signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            if self.poll() is None: os.kill(self.pid, number)

    def kill(self): self.send_signal(signal.SIGKILL)

    def interrupt(self, timeout=300):
        "Ctrl-C; what was said until the end."
        self.send_signal(signal.SIGINT)
        return self.communicate(timeout)


def become(job):
    "In the forked process: be the command."
    if job["session"]: os.setsid()
    os.chdir(job["cwd"])
    for fd, name, how in ((0, os.devnull, os.O_RDONLY), *((fd, f"{job['folder']}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND) for fd, name in ((1, "stdout"), (2, "stderr")))):
        os.dup2(opened := os.open(name, how), fd)
        os.close(opened)
    name, *args = job["argv"]
    sys.argv = args[:1] + args[2:] if name == "python" else [str(BIN / name), *args]
    try: code = exec(compile(args[1], "<string>", "exec"), {"__name__": "__main__"}) if name == "python" else getattr(sys.modules[ENTRIES[name][0]], ENTRIES[name][1])()
    except SystemExit as e: code = e.code
    if code is not None and not isinstance(code, int): code = print(code, file=sys.stderr) or 1
    threading._shutdown() # what the interpreter does at its end, but for taking apart each of the objects that were imported: seconds
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr): stream.flush()
    os._exit(code or 0)


def keep(job):
    "In a process between the two: start the command, tell its number, wait for its end, and write down how it ended."
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0: return become(job)
    print(pid, flush=True)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    part = Path(job["folder"]) / "status.part"
    part.write_text(str(status))
    part.rename(part.with_name("status"))
    os._exit(0)


def serve():
    "Import what the commands are made of, without a network; then, for each job that comes in, fork."
    sys.addaudithook(stay_here)
    for module, _ in ENTRIES.values(): importlib.import_module(module)
    gc.freeze() # what is here stays, and stays shared
    signal.signal(signal.SIGCHLD, signal.SIG_IGN) # nobody waits for the keepers
    while line := sys.stdin.readline():
        if os.fork() == 0: return keep(json.loads(line))


if __name__ == "__main__": serve()
