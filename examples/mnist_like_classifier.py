# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Trains a small classifier of handwritten digits as a pipeline over two IPUs, then measures its accuracy.

The digits are the 8 x 8 scans that come with scikit-learn.

    python mnist_like_classifier.py                      # with PopTorch, on IPUs
    python -m poptorch_host mnist_like_classifier.py     # without, anywhere
"""

import argparse
from typing import Optional

import poptorch
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import TensorDataset

MICRO_BATCH = 8


class Classifier(torch.nn.Module):
    """A multi-layer perceptron: its first half on IPU 0, the second half and the loss on IPU 1."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            poptorch.BeginBlock(torch.nn.Flatten(), "first half", ipu_id=0),
            torch.nn.Linear(64, 128),
            torch.nn.ReLU(),
            poptorch.BeginBlock(torch.nn.Linear(128, 64), "second half", ipu_id=1),
            torch.nn.ReLU(),
            torch.nn.Linear(64, 10),
        )
        self.loss = torch.nn.CrossEntropyLoss()

    def forward(self, images: torch.Tensor, labels: Optional[torch.Tensor] = None):
        """(logits, loss) with labels, logits without."""
        logits = self.layers(images)
        return logits if labels is None else (logits, self.loss(logits, labels))


def data():
    """(training set, test set) of (8 x 8 image, label)."""
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    train, test = train_test_split(range(len(labels)), test_size=360, stratify=labels, random_state=0)
    return tuple(TensorDataset(images[part], labels[part]) for part in (train, test))


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of rows whose largest logit is that of the label."""
    return (logits.argmax(dim=1) == labels).float().mean().item()


def train(model: Classifier, dataset: TensorDataset, epochs: int) -> None:
    """Trains `model`, and prints the loss and the accuracy of every epoch."""
    options = poptorch.Options()
    options.deviceIterations(4)  # weight updates in a call
    options.Training.gradientAccumulation(4)  # a pipeline of two stages needs at least 3
    options.outputMode(poptorch.OutputMode.All)
    options.randomSeed(0)
    loader = poptorch.DataLoader(options, dataset, batch_size=MICRO_BATCH, shuffle=True)
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    trainer = poptorch.trainingModel(model, options, optimizer)
    for epoch in range(epochs):
        losses, scores = [], []
        for images, labels in loader:
            logits, loss = trainer(images, labels)
            losses.append(loss.mean().item())  # one loss for each micro-batch
            scores.append(accuracy(logits, labels))
        print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.4f}, accuracy {sum(scores) / len(scores):.4f}")
    trainer.detachFromDevice()  # brings the weights back, and leaves the IPUs to inference


def evaluate(model: Classifier, dataset: TensorDataset) -> None:
    """Prints the accuracy of `model` on `dataset`."""
    options = poptorch.Options()
    options.deviceIterations(5)  # no fewer than there are stages
    loader = poptorch.DataLoader(options, dataset, batch_size=MICRO_BATCH)
    classify = poptorch.inferenceModel(model.eval(), options)
    logits, labels = map(torch.cat, zip(*[(classify(images), labels) for images, labels in loader]))
    print(f"test accuracy: {accuracy(logits, labels):.4f} of {len(labels)} images")


def main() -> None:
    """Trains, then evaluates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    training_set, test_set = data()
    model = Classifier()
    train(model, training_set, arguments.epochs)
    evaluate(model, test_set)


if __name__ == "__main__":
    main()
