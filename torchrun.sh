#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
# Starts train_swin.py in several processes on CPU and GPU machines, as the pod scripts do on IPUs.
#   ./torchrun.sh --cfg SWIN_TINY --data-path ./data/imagenet1k --output ./output/swin_tiny_224/
#   ./torchrun.sh --dry-run ARGUMENT...    prints the command
# Variables: PROCESSES  of this machine (default: its GPUs, or 1)      NODES      machines (default 1)
#            NODE       number of this machine, from 0 (default 0)     MASTER     host and port of machine 0
#            HOST_PIPELINE  1: the stages of IPU.LAYERS_PER_IPU run in separate processes (see training/host_pipeline.py)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=environment.sh
source "$root/environment.sh"
use_environment "$root" requirements.txt

dry_run=""
if [ "${1:-}" = --dry-run ]; then
    dry_run=1
    shift
fi
processes=${PROCESSES:-$("$PYTHON" -c 'import torch; print(max(torch.cuda.device_count(), 1))')}
nodes=${NODES:-1}
threads=${OMP_NUM_THREADS:-1}  # a list has further numbers, for nested regions
for setting in "PROCESSES=$processes" "NODES=$nodes" "OMP_NUM_THREADS=${threads%%,*}"; do
    if ! [[ ${setting#*=} =~ ^[1-9][0-9]*$ ]]; then
        echo "torchrun.sh: $setting is not a number from 1" >&2
        exit 2
    fi
done
if [ "$nodes" -gt 1 ] && ! [[ ${MASTER:-} =~ ^.+:[0-9]+$ ]]; then
    echo "torchrun.sh: MASTER='${MASTER:-}' is not HOST:PORT of machine 0, which NODES=$nodes needs" >&2
    exit 2
fi
# torchrun gives each process one thread otherwise
cores=$(PYTHONPATH="$root" "$PYTHON" -c 'from common.cores import usable_cores; print(usable_cores())')
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}"
command=("$PYTHON" -m torch.distributed.run --nnodes "$nodes" --nproc-per-node "$processes")
if [ "$nodes" -gt 1 ]; then
    command+=(--node-rank "${NODE:-0}" --master-addr "${MASTER%%:*}" --master-port "${MASTER##*:}")
else
    command+=(--standalone)
fi
command+=("$root/train_swin.py" "$@")
if [ -n "$dry_run" ]; then
    printf '%q ' "${command[@]}"
    echo
    exit
fi
exec "${command[@]}"
