__version__ = "0.1.0"

import logging
import os
import sys


def _stopped(kind, e, trace):
    "Ctrl-C while a command is still importing, and cannot say anything by itself."
    if issubclass(kind, KeyboardInterrupt): print(f"{os.path.basename(sys.argv[0])}: stopped by Ctrl-C.", file=sys.stderr)
    else: sys.__excepthook__(kind, e, trace)


if os.path.basename(sys.argv[0] if sys.argv else "").startswith("cmlfa_"): # a command, whose process is its own
    sys.excepthook = _stopped
    logging.getLogger("matplotlib").setLevel(logging.ERROR) # a home that may not be written to, or a list of fonts that takes a while, is no news to whoever looks for a person
