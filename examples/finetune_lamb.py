# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Fine-tunes a network in half precision with LAMB, a warm-up and a decay, and can be stopped and resumed.

The network knows the handwritten digits 0 to 4 of scikit-learn: it learns them first, in plain PyTorch, where other
programs would load published weights. Its first layers are then frozen, and the rest learns the digits 5 to 9.

    python finetune_lamb.py --checkpoint digits.pt                     # all epochs
    python finetune_lamb.py --checkpoint digits.pt --stop-after 3      # some of them; run again to resume

Without IPUs: `python -m poptorch_host finetune_lamb.py ...`
"""

import argparse
import os
import warnings
from typing import Optional

import poptorch
import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

MICRO_BATCH, ACCUMULATION = 16, 2
WARMUP_UPDATES = 10


class Network(torch.nn.Module):
    """Convolutions that are kept (`backbone`), and layers that are trained again (`head`)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = torch.nn.Sequential(
            torch.nn.Conv2d(1, 16, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Conv2d(16, 32, 3, stride=2),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
        )
        self.head = torch.nn.Sequential(
            torch.nn.Linear(288, 64), torch.nn.LayerNorm(64), torch.nn.GELU(), torch.nn.Linear(64, classes)
        )
        self.loss = torch.nn.CrossEntropyLoss()

    def forward(self, images: torch.Tensor, labels: Optional[torch.Tensor] = None):
        """(logits, loss) with labels, logits without."""
        logits = self.head(self.backbone(images))
        return logits if labels is None else (logits, self.loss(logits, labels))


def digits(first: int) -> TensorDataset:
    """Images, and labels from 0 on, of the five digits from `first` on."""
    data = load_digits()
    chosen = (data.target >= first) & (data.target < first + 5)
    images = torch.tensor(data.images[chosen] / 16, dtype=torch.float32).unsqueeze(1)
    return TensorDataset(images, torch.tensor(data.target[chosen] - first))


def pretrained() -> Network:
    """A network that classifies the digits 0 to 4."""
    torch.manual_seed(0)
    model = Network(classes=5)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    images, labels = digits(first=0).tensors
    for _ in range(20):
        optimizer.zero_grad()
        model(images, labels)[1].backward()
        optimizer.step()
    return model


def prepare(model: Network) -> poptorch.optim.LAMB:
    """Freezes the backbone, makes everything float16, and returns the optimizer of the rest."""
    model.backbone.requires_grad_(False)
    model.half()
    matrices = [parameter for parameter in model.head.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.head.parameters() if parameter.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    return poptorch.optim.LAMB(
        groups,
        lr=2e-2,
        loss_scaling=128.0,
        accum_type=torch.float16,
        first_order_momentum_accum_type=torch.float16,
        second_order_momentum_accum_type=torch.float32,
    )


def schedule(optimizer: torch.optim.Optimizer, updates: int) -> torch.optim.lr_scheduler.LambdaLR:
    """A linear warm-up, then a linear decay to zero at the end of `updates`."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: min((done + 1) / WARMUP_UPDATES, (updates - done) / max(updates - WARMUP_UPDATES, 1))
    )


def make_loader() -> poptorch.DataLoader:
    """Combined batches of the digits 5 to 9, and the options that they are made for (`loader.options`)."""
    images, labels = digits(first=5).tensors
    options = poptorch.Options()
    options.Training.gradientAccumulation(ACCUMULATION)
    options.Precision.enableStochasticRounding(True)
    options.outputMode(poptorch.OutputMode.All)
    options.randomSeed(0)
    return poptorch.DataLoader(options, TensorDataset(images.half(), labels), batch_size=MICRO_BATCH, shuffle=True)


def save(
    path: str,
    trainer: poptorch.PoplarExecutor,
    optimizer: poptorch.optim.LAMB,
    scheduler: torch.optim.lr_scheduler.LambdaLR,
    epoch: int,
) -> None:
    """Writes all that the rest of the training depends on; `epoch` is the number of those done."""
    torch.save(
        {
            "model": trainer.state_dict(),
            "optimizer": optimizer.state_dict(),
            "epoch": epoch,
            "scheduler": scheduler.state_dict(),
            "random": trainer.rng_state,
        },
        path,
    )


def resume(
    path: str,
    trainer: poptorch.PoplarExecutor,
    optimizer: poptorch.optim.LAMB,
    scheduler: torch.optim.lr_scheduler.LambdaLR,
) -> int:
    """Takes over what `save` has written, to the device too; returns how many epochs are done."""
    saved = torch.load(path, weights_only=True)
    trainer.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
    trainer.setOptimizer(optimizer)
    trainer.rng_state = saved["random"]
    print(f"resuming after epoch {saved['epoch']}")
    return saved["epoch"]


def train_epoch(
    trainer: poptorch.PoplarExecutor,
    loader: poptorch.DataLoader,
    optimizer: poptorch.optim.LAMB,
    scheduler: torch.optim.lr_scheduler.LambdaLR,
) -> str:
    """One pass over the data; returns what to say of it."""
    losses, right = [], []
    for images, labels in loader:
        logits, loss = trainer(images, labels)
        losses.append(loss.float().mean().item())
        right.append((logits.argmax(dim=1) == labels).float().mean().item())
        scheduler.step()
        trainer.setOptimizer(optimizer)
    return f"loss {sum(losses) / len(losses):.4f}, accuracy {sum(right) / len(right):.4f}"


def main() -> None:
    """Trains from the start, or from where the checkpoint ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="file to write after each epoch, and to resume from")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--stop-after", type=int, help="stop when so many epochs are done")
    arguments = parser.parse_args()
    # The optimizer's step is made on the device, where the scheduler does not see it.
    warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)

    model = pretrained()
    optimizer = prepare(model)
    loader = make_loader()
    scheduler = schedule(optimizer, arguments.epochs * len(loader))
    trainer = poptorch.trainingModel(model, loader.options, optimizer)
    trainer.compile(*next(iter(loader)))
    first = resume(arguments.checkpoint, trainer, optimizer, scheduler) if os.path.exists(arguments.checkpoint) else 0
    for epoch in range(first, min(arguments.epochs, arguments.stop_after or arguments.epochs)):
        torch.manual_seed(epoch)  # the order of the samples follows from the epoch, not from what ran before
        print(f"epoch {epoch + 1}: {train_epoch(trainer, loader, optimizer, scheduler)}")
        save(arguments.checkpoint, trainer, optimizer, scheduler, epoch + 1)


if __name__ == "__main__":
    main()
