"""The MLX engine, on mlx-lm's model code. Nothing outside this folder imports mlx or mlx_lm.

Made for Apple silicon; the same code runs on Linux's CPU, slowly, which is where it is tested.
"""

import os
import platform

# Without it macOS may end a training run whose display is on (github.com/ml-explore/mlx/issues/3267).
# Read when Metal is first used; set it to 0 to keep the display's smoothness instead.
if platform.system() == "Darwin":
    os.environ.setdefault("AGX_RELAX_CDM_CTXSTORE_TIMEOUT", "1")
