#!/bin/bash
# One run on several nodes of a Slurm cluster. In the workspace, on a file system that all nodes have:
#
#     sbatch slurm.sh run.yaml
#
# Fit the four lines after the name, and in run.yaml make batch_size a multiple of nodes x GPUs.
# Tests run this with stand-ins for srun and scontrol; it has not been run on a cluster so far.

#SBATCH --job-name=forgellm
#SBATCH --nodes=2
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --ntasks-per-node=1
#SBATCH --output=%x-%j.log
# Ten minutes before the time is up, to this script alone: a step's own processes would be ended.
#SBATCH --signal=B:TERM@600

set -euo pipefail
config=${1:?give the recipe: sbatch slurm.sh run.yaml}

# The node where all meet also writes the run; the others join.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun --kill-on-bad-exit=1 forgellm train --config "$config" \
    --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv-endpoint "$first:29400" &
step=$!

# Stopped in order, the run keeps a checkpoint of its last step.
trap 'forgellm runs stop' TERM
wait "$step" || true  # which ends early where the trap has run
wait "$step"
