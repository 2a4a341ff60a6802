"""The torch engine. Nothing outside this folder imports torch or transformers."""

import os

# Waiting threads sleep instead of spinning: with one other busy process on the machine a step is
# twice as fast, alone as fast. OpenMP reads this when torch is loaded, hence here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
