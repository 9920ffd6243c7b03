#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
# Fine-tunes Swin-L from ImageNet-22k to ImageNet-1k in half precision on a POD16: 2 replicas of 8 IPUs.
#   PRETRAINED=swin_large_patch4_window7_224_22k.pth DATA_PATH=/datasets/imagenet1k ./swin_large_224_22k_finetune_1k_fp16_pod16.sh
#   ./swin_large_224_22k_finetune_1k_fp16_pod16.sh --dry-run    prints the command; pod.sh lists the variables
set -euo pipefail
# shellcheck source=pod.sh
source "$(dirname "${BASH_SOURCE[0]}")/pod.sh"
CONFIG=SWIN_LARGE_224_22K_FINETUNE_1K_FP16_POD16
REPLICAS=${REPLICAS:-2}
IPUS_PER_REPLICA=${IPUS_PER_REPLICA:-8}
INSTANCES=${INSTANCES:-1}  # two replicas per process, which share optimizer state
ILDS=${ILDS:-1}
PRETRAINED=${PRETRAINED:-swin_large_patch4_window7_224_22k.pth}
launch_pod "$@"
