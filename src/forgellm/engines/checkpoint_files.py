"""The files of a checkpoint that a resume needs, the same for every engine.

`optimizer.safetensors` holds, for each trained parameter, `<name>.exp_avg` and `<name>.exp_avg_sq`
(float32, the parameter's shape) and `<name>.step` (a number): an engine continues what another
began. `rng.safetensors` holds an entry for each source of chance that its writer had; an engine
takes those it knows.
"""

OPTIMIZER_FILE = "optimizer.safetensors"
RNG_FILE = "rng.safetensors"
