# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
# The application on CPUs or GPUs. IPUs need the Poplar SDK, which is licensed separately: build on Graphcore's images.
#   docker build --tag swin .
# pip's torch has CUDA and runs on CPUs, too; --build-arg TORCH_INDEX=URL takes torch from another index of wheels.
FROM python:3.11-slim-bookworm

ARG TORCH_INDEX=""

# A compiler for dataset/*.c, models/*.c and torch.compile; Debian keeps one version of it in a release.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/swin
COPY requirements.txt constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} \
        torch torchvision \
    && pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt
COPY . .
RUN python -m compileall -q . \
    && useradd --create-home --uid 10001 swin
USER 10001
# Any user of `docker run --user` may keep compiled code there.
ENV XDG_CACHE_HOME=/var/tmp/swin

# In exec form, so that SIGTERM of `docker stop` reaches Python, which saves the state and exits with code 75.
ENTRYPOINT ["python"]
CMD ["train_swin.py", "--help"]
