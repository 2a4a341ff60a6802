"""The MLX engine, on mlx-lm's model code. Nothing outside this folder imports mlx or mlx_lm.

Made for Apple silicon; the same code runs on Linux's CPU, slowly, which is where it is tested.
What only Metal does stands in `metal`.
"""
