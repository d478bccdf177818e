__version__ = "0.1.0"

import logging

logging.getLogger("matplotlib").setLevel(logging.ERROR) # a home that may not be written to, or a list of fonts that takes a while, is no news to whoever looks for a person
