"""Records into CSV, tables and plots."""

import os
import sys

# Pictures are written to files. matplotlib reads the variable when it is imported, and fails for one it does not know.
if "matplotlib" not in sys.modules:
    os.environ["MPLBACKEND"] = "Agg"
