#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
# Sets up an environment and runs the tests.
#   ./test_swin.sh                  everything
#   ./test_swin.sh --torch 2.0.1    everything, in a separate environment with that PyTorch
#   ./test_swin.sh tests -k resume  what pytest selects
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=environment.sh
source "$root/environment.sh"
torch=""
if [ "${1:-}" = --torch ]; then
    torch=${2:?--torch needs a version}
    shift 2
fi
use_environment "$root" requirements-test.txt "$torch"

cd "$root"
# One process per core: more threads would compete for the cores.
export OMP_NUM_THREADS=1
exec "$PYTHON" -m pytest --numprocesses auto --dist loadgroup "$@"
