"""The torch engine. Nothing outside this folder imports torch or transformers."""

import os

# Waiting threads look for work for about a tenth of a millisecond, then sleep. That bridges the gaps
# inside a step; spinning on and on would take the time of whoever else is busy. OpenMP reads both when
# torch is loaded; benchmarks/README.md has the figures.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
