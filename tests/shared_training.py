"""A tiny training that one process does, or several that torchrun started; its run folder is the first argument."""

import sys
from pathlib import Path

import torch
from torch import nn

from app.pathology.classes import WSSS4LUAD
from model_export.training.folds import Fold
from model_export.training.hardware import Hardware, opened
from model_export.training.loop import Trainer
from tests.model_export_support import Silent, drawn_samples, label_only_sample, recipe


def train(run: Path, hardware: Hardware) -> None:
    """Train without dropout and batch statistics, which are each process's own on a CPU."""
    samples = drawn_samples(3)
    training = {"wsss4luad": [*samples[:2], label_only_sample((True, False, False))]}
    asked = recipe(batch_size=4, dropout=0.0, stain_sigma=0.3)
    trainer = Trainer(run, WSSS4LUAD, asked, training, samples[2:], Fold(0, 3), hardware)
    network = trainer.learner.network
    network._kept = tuple(m for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    trainer.train(Silent())


if __name__ == "__main__":
    torch.set_num_threads(1)
    with opened("cpu") as hardware:
        train(Path(sys.argv[1]), hardware)
        if not hardware.first:
            Path(sys.argv[1], f"seen-by-{hardware.rank}-of-{hardware.processes}").touch()
