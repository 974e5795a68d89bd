#!/usr/bin/env bash
# Starts this machine's part with deepspeed, without ssh: to be run on each machine, by whatever starts things there.
# The names in the hostfile are not looked up then; their number, order and slots count.
#
#   MASTER_ADDR=10.0.0.1 NODE_RANK=0 bash configs/clusters/deepspeed-node.sh --config configs/gpt2-124m.yaml --batch.micro_size 10
#   MASTER_ADDR=10.0.0.1 NODE_RANK=1 bash configs/clusters/deepspeed-node.sh --config configs/gpt2-124m.yaml --batch.micro_size 10
set -euo pipefail
cd "$(dirname "$0")/../.."

exec deepspeed --hostfile "${HOSTFILE:-configs/clusters/hostfile}" --no_ssh \
    --node_rank "${NODE_RANK:?0 on the first machine, 1 on the second, ...}" \
    --master_addr "${MASTER_ADDR:?the address of the machine with NODE_RANK 0}" --master_port "${MASTER_PORT:-29500}" \
    launcher/pretrain.py "$@"
