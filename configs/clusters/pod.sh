#!/usr/bin/env bash
# Runs a command as the first process of a container. The operator starts a pod again for codes from 128 on: so 138 for
# Ingot's 75. SIGTERM, with which Kubernetes ends a pod, goes on to the command, which stops with a checkpoint.
#
#   bash configs/clusters/pod.sh python launcher/torchrun.py ...
set -uo pipefail

"$@" &
command=$!
trap 'signalled=1; kill -TERM "$command"' TERM INT
while signalled=0; do
    wait "$command"
    code=$?
    [ "$signalled" = 1 ] || break # otherwise it was a signal that ended the waiting, not the command
done
[ "$code" != 75 ] || code=138
exit "$code"
