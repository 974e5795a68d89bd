#!/usr/bin/env bash
# Starts this machine's part with torchrun; the machines meet at MASTER_ADDR, in any order. The same command on each:
#
#   MASTER_ADDR=10.0.0.1 NODES=2 GPUS=8 bash configs/clusters/torchrun-node.sh --config configs/gpt2-124m.yaml --batch.micro_size 10
#
# torchrun recognises the machine that holds the meeting by its name. Where names lie (containers, "localhost"), it would
# wait for somebody else: say HOLDS_MEETING=1 on that machine and 0 on the others.
set -euo pipefail
cd "$(dirname "$0")/../.."

address=${MASTER_ADDR:?the address of one of the machines}
meeting=(--rdzv_backend c10d --rdzv_id "${RUN_ID:-ingot}" --rdzv_endpoint "$address:${MASTER_PORT:-29500}")
[ -z "${HOLDS_MEETING:-}" ] || meeting+=(--rdzv_conf "is_host=$HOLDS_MEETING")

# Ingot's own torchrun.py takes torchrun's options and exits with a code that says how the run ended.
exec python launcher/torchrun.py --nnodes "${NODES:?the number of machines}" --nproc_per_node "${GPUS:-gpu}" \
    "${meeting[@]}" launcher/pretrain.py "$@"
