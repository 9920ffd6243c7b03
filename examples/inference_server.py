# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Answers a stream of requests, images of handwritten digits, while another process prepares the next ones.

Each call of the model takes the requests of several device iterations on two replicas of a pipeline. The network has
random features and a least-squares readout, so it is fitted in a moment and answers nearly all requests correctly.

    python inference_server.py --requests 1000 --answers answers.csv
    python -m poptorch_host inference_server.py --requests 1000 --answers answers.csv     # without IPUs
"""

import argparse
import csv
from typing import Iterator, List, Tuple

import poptorch
import torch
from sklearn.datasets import load_digits
from torch.utils.data import IterableDataset

MICRO_BATCH, DEVICE_ITERATIONS, REPLICAS = 4, 8, 2
PADDING = -1  # the id of rows without a request


class Requests(IterableDataset):
    """`count` requests of (id, image), in the order of their ids, then padding up to a multiple of `call`."""

    def __init__(self, images: torch.Tensor, count: int, call: int) -> None:
        super().__init__()
        self.images = images
        self.count = count
        self.total = -(-count // call) * call

    def __iter__(self) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
        for number in range(self.total):
            yield torch.tensor(number if number < self.count else PADDING), self.images[number % len(self.images)]


class Recogniser(torch.nn.Module):
    """Random features on IPU 0, a linear readout on IPU 1; returns the digit and how sure it is of it."""

    def __init__(self) -> None:
        super().__init__()
        self.features = poptorch.BeginBlock(torch.nn.Linear(64, 512), ipu_id=0)
        self.readout = poptorch.BeginBlock(torch.nn.Linear(512, 10, bias=False), ipu_id=1)

    def forward(self, images: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        scores = self.readout(torch.relu(self.features(images)))
        best = scores.max(dim=1)
        return best.indices, best.values

    @torch.no_grad()
    def fit(self, images: torch.Tensor, digits: torch.Tensor) -> None:
        """Solves the readout's ridge regression onto one-hot vectors."""
        features = torch.relu(self.features(images))
        targets = torch.nn.functional.one_hot(digits, 10).float()
        gram = features.T @ features + torch.eye(features.shape[1])
        self.readout.weight.copy_(torch.linalg.solve(gram, features.T @ targets).T)


def serve(model: Recogniser, images: torch.Tensor, count: int) -> List[Tuple[int, int, float]]:
    """(id, digit, score) of each of `count` requests, in the order of the answers."""
    options = poptorch.Options()
    options.deviceIterations(DEVICE_ITERATIONS)
    options.replicationFactor(REPLICAS)
    requests = Requests(images, count, MICRO_BATCH * DEVICE_ITERATIONS * REPLICAS)
    loader = poptorch.DataLoader(
        options,
        requests,
        batch_size=MICRO_BATCH,
        mode=poptorch.DataLoaderMode.Async,
        async_options={"buffer_size": 4, "early_preload": True, "load_indefinitely": False},
    )
    recognise = poptorch.inferenceModel(model.eval(), options)
    answers = []
    for ids, batch in loader:
        digits, scores = recognise(batch)
        made = ids != PADDING
        answers += zip(ids[made].tolist(), digits[made].tolist(), scores[made].tolist())
    for name, (least, most, mean) in (
        ("in all", recognise.getLatency()),
        ("to the IPU", recognise.getHostIpuLatency()),
        ("computing", recognise.getComputeLatency()),
        ("from the IPU", recognise.getIpuHostLatency()),
    ):
        print(f"latency {name}: {least * 1e3:.3f} to {most * 1e3:.3f} ms, {mean * 1e3:.3f} ms on average")
    loader.terminate()
    return answers


def main() -> None:
    """Fits the network, serves the requests, and says how it went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--answers", help="CSV file to write: id, digit, score")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    data = load_digits()
    images, digits = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    model = Recogniser()
    model.fit(images[500:], digits[500:])

    answers = serve(model, images[:500], arguments.requests)
    right = sum(digits[number % 500].item() == digit for number, digit, _ in answers)
    print(f"answered {len(answers)} requests, {right / len(answers):.1%} of them correctly")
    if arguments.answers:
        with open(arguments.answers, "w", newline="") as file:
            csv.writer(file).writerows(answers)


if __name__ == "__main__":
    main()
