#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
# Sets up an environment and trains.
#   ./train_swin.sh                                  the demonstration: prepares real data, trains, validates
#   ./train_swin.sh --cfg SWIN_TINY --data-path ...  any run: the arguments are those of train_swin.py
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=environment.sh
source "$root/environment.sh"
use_environment "$root" requirements.txt

if [ $# -gt 0 ]; then
    exec "$PYTHON" "$root/train_swin.py" "$@"
fi

data=$root/data/digits
output=$root/output/swin_demo
(cd "$root" && "$PYTHON" -m dataset.prepare digits --out "$data")
"$PYTHON" "$root/train_swin.py" --cfg SWIN_DEMO --data-path "$data" --output "$output"
"$PYTHON" "$root/validate.py" --data-path "$data" --checkpoint "$output/best.pth"
echo "checkpoints, log and metrics: $output"
