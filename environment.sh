# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
# shellcheck shell=bash
# Sourced by train_swin.sh and test_swin.sh: finds or creates a Python with the packages of a requirements file.

# has_requirements PYTHON FILE: whether the interpreter has every package of the file, recent enough.
has_requirements() {
    "$1" - "$2" <<'PYTHON'
import importlib.metadata
import pathlib
import sys

try:
    from packaging.requirements import Requirement
except ModuleNotFoundError:  # timm and pytest bring it
    sys.exit(1)


def missing(path):
    for line in pathlib.Path(path).read_text().splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("-r "):
            yield from missing(pathlib.Path(path).with_name(line[3:].strip()))
        elif line:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate():
                try:
                    if not requirement.specifier.contains(importlib.metadata.version(requirement.name), prereleases=True):
                        yield line
                except importlib.metadata.PackageNotFoundError:
                    yield line


sys.exit(bool(list(missing(sys.argv[1]))))
PYTHON
}

# in_sdk PYTHON: whether the interpreter has the Poplar SDK's PopTorch.
in_sdk() {
    "$1" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("poptorch") is None)'
}

# install PYTHON FILE CONSTRAINT...: installs the file's packages; a constraint is NAME==VERSION or a constraints file.
install() {
    local python=$1 file=$2 pins
    shift 2
    pins=$(mktemp)
    for constraint in "$@"; do
        if [ -f "$constraint" ]; then cat "$constraint"; else echo "$constraint"; fi
    done >"$pins"
    "$python" -m pip install --quiet --requirement "$file" --constraint "$pins"
    rm -f "$pins"
}

# use_environment ROOT FILE [TORCH]: sets PYTHON to an interpreter with the packages of ROOT/FILE.
#   In a Poplar SDK environment, missing packages are installed, but torch is left alone; an interpreter with everything
#   is used unchanged; otherwise ROOT/.venv is created. TORCH: this version, in a separate environment.
use_environment() {
    local root=$1 file=$1/$2 torch=${3:-} folder=$1/.venv${3:+-torch-$3}
    PYTHON=${PYTHON:-python3}
    if [ -z "$torch" ] && in_sdk "$PYTHON"; then
        has_requirements "$PYTHON" "$file" ||
            install "$PYTHON" "$file" "torch==$("$PYTHON" -c 'import torch; print(torch.__version__.split("+")[0])')"
        return
    fi
    if [ -z "$torch" ] && has_requirements "$PYTHON" "$file"; then
        return
    fi
    if [ ! -x "$folder/bin/python" ]; then
        echo "making the environment $folder (a minute or two)"
        "$PYTHON" -m venv "$folder"
    fi
    PYTHON=$folder/bin/python
    if ! has_requirements "$PYTHON" "$file"; then
        if [ -n "$torch" ]; then
            install "$PYTHON" "$file" "torch==$torch" "numpy<2"
        else
            install "$PYTHON" "$file" "$root/constraints.txt"
        fi
    fi
}
