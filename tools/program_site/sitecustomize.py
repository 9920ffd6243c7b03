# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Stands in for downloads of the programs of programs.yml whose PYTHONPATH has this folder.

Python runs this file when it starts. The programs and the packages are not modified on disk.
"""

import json
import urllib.request
from pathlib import Path
from urllib.response import addinfourl

SUMS = Path("~/.torch/datasets/cifar-10-batches-py/sums.json").expanduser()
DOWNLOADS = Path("~/downloads").expanduser()


def expect_generated_cifar10() -> None:
    """Has torchvision compare the files of CIFAR-10 with the sums that program_data wrote beside them."""
    from torchvision.datasets import CIFAR10

    sums = json.loads(SUMS.read_text())
    CIFAR10.train_list = [[name, sums[name]] for name, _ in CIFAR10.train_list]
    CIFAR10.test_list = [[name, sums[name]] for name, _ in CIFAR10.test_list]
    CIFAR10.meta = {**CIFAR10.meta, "md5": sums["batches.meta"]}


def serve_downloads() -> None:
    """Has urllib read https://HOST/PATH from the folder of downloads; an address that ends in / is its index.html."""

    def opened(handler: urllib.request.HTTPSHandler, request: urllib.request.Request) -> addinfourl:
        path = request.selector.lstrip("/") + ("index.html" if request.selector.endswith("/") else "")
        answer = addinfourl((DOWNLOADS / request.host / path).open("rb"), {}, request.full_url, 200)
        answer.msg = "OK"
        return answer

    urllib.request.HTTPSHandler.https_open = opened


if SUMS.exists():
    expect_generated_cifar10()
if DOWNLOADS.exists():
    serve_downloads()
