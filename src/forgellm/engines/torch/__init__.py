"""The torch engine. Nothing outside this folder imports torch or transformers."""

import os

# Waiting threads sleep instead of spinning. Alone on two cores a step then takes 1.1 to 1.2 times as
# long; beside one other busy process it takes half as long. OpenMP reads this when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
