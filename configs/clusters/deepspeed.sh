#!/usr/bin/env bash
# Starts all machines of the hostfile from one of them, over ssh. Needs pdsh here, ssh without a password to each machine,
# and the repository, its environment and the corpora under the same paths everywhere.
#
# Variables reach the other machines if they start with NCCL or PYTHON, or stand in ~/.deepspeed_env, as NAME=VALUE lines.
#
#   bash configs/clusters/deepspeed.sh --config configs/gpt2-124m.yaml --batch.micro_size 10
set -euo pipefail
cd "$(dirname "$0")/../.."

hostfile=${HOSTFILE:-configs/clusters/hostfile}
first=$(grep -v '^ *#' "$hostfile" | awk 'NF {print $1; exit}')

exec deepspeed --hostfile "$hostfile" --master_addr "${MASTER_ADDR:-$first}" --master_port "${MASTER_PORT:-29500}" \
    launcher/pretrain.py "$@"
