#!/usr/bin/env bash
# A run on Slurm that goes on by itself: before the time limit it stops with a checkpoint, and asks to be queued again.
#
#   sbatch configs/clusters/slurm.sh --config configs/gpt2-124m.yaml --batch.micro_size 10 --run.name gpt2 --parallel.engine fsdp
#
#SBATCH --job-name=ingot
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# One task a machine: torchrun, which starts a process for each GPU. SIGUSR1 comes five minutes before the limit, which
# must be more than a step and a checkpoint take.
#SBATCH --signal=USR1@300
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:?start this with sbatch}"

most_restarts=${MOST_RESTARTS:-100}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000)) # jobs that share a machine do not share a port
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240 # seconds that ranks have for their checkpoint after scancel; else 30

srun --kill-on-bad-exit=1 python launcher/torchrun.py \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc_per_node "${SLURM_GPUS_ON_NODE:-8}" \
    --rdzv_backend c10d --rdzv_id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" --rdzv_endpoint "$first:$port" \
    launcher/pretrain.py "$@"
code=$?

# 75: stopped on request, or a process died; the newest checkpoint is where to go on. Other codes are for people to see.
if [ "$code" = 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "$most_restarts" ]; then
    echo "ended with 75: queued again (restart $((${SLURM_RESTART_COUNT:-0} + 1)) of at most $most_restarts)"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
