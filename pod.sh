# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
# shellcheck shell=bash
# Sourced by the pod scripts: starts a named configuration with poprun.
#
# Variables, set by the script or the environment:
#   CONFIG            name of the configuration                          INSTANCES         number of processes
#   REPLICAS          data-parallel replicas over all processes          IPUS_PER_REPLICA  pipeline stages
#   ILDS              IPU link domains (joined pods of 64)               HOSTS             comma-separated machines
#   PARTITION         V-IPU partition, made or changed to fit            VIPU_SERVER       host of the V-IPU server
#   SUBNET            network that MPI uses between hosts                DATA_PATH         ImageNet folder
#   PRETRAINED        weights to fine-tune                               OUTPUT            folder of the run
#   CACHE_DIR         compiled programs, one folder per configuration, shared between instances

# launch_pod [--dry-run] ARGUMENT...: runs or prints the command; further arguments go to train_swin.py.
launch_pod() {
    local root dry_run=""
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
    if [ "${1:-}" = --dry-run ]; then
        dry_run=1
        shift
    fi
    if [ $((REPLICAS % INSTANCES)) -ne 0 ]; then
        echo "REPLICAS=$REPLICAS cannot be shared by INSTANCES=$INSTANCES processes: choose numbers that divide" >&2
        return 2
    fi
    local command=(
        poprun
        --host "${HOSTS:-localhost}"
        --num-instances "$INSTANCES"
        --num-replicas "$REPLICAS"
        --ipus-per-replica "$IPUS_PER_REPLICA"
        --num-ilds "${ILDS:-1}"
        --vipu-partition "${PARTITION:-swin-$((REPLICAS * IPUS_PER_REPLICA))}"
        --vipu-server-host "${VIPU_SERVER:-localhost}"
        --vipu-server-timeout 3600
        --update-partition yes
        --remove-partition no
        --only-output-from-instance 0
        --executable-cache-path "${CACHE_DIR:-$root/cachedir}/$CONFIG"
        --mpi-local-args "-x PATH -x LD_LIBRARY_PATH -x PYTHONPATH"
    )
    if [ -n "${SUBNET:-}" ]; then
        command+=(--mpi-global-args "--mca oob_tcp_if_include $SUBNET --mca btl_tcp_if_include $SUBNET")
    fi
    command+=(
        "${PYTHON:-python3}" "$root/train_swin.py"
        --cfg "$CONFIG"
        --data-path "${DATA_PATH:-${DATASETS_DIR:-$root/data}/imagenet1k}"
        --output "${OUTPUT:-$root/output/$CONFIG}"
        --replicas "$REPLICAS"
    )
    if [ -n "${PRETRAINED:-}" ]; then
        command+=(--pretrained-model "$PRETRAINED")
    fi
    command+=("$@")
    if [ -n "$dry_run" ]; then
        printf '%q ' "${command[@]}"
        echo
        return
    fi
    exec "${command[@]}"
}
