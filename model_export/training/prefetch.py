"""The batches of a row of steps, made in between steps or ahead of them by other processes."""

from collections.abc import Iterator

from torch.utils.data import DataLoader, Dataset

from model_export.training.augment import Batch, BatchSource


class _Steps(Dataset[Batch]):
    def __init__(self, source: BatchSource) -> None:
        self._source = source

    def __getitem__(self, step: int) -> Batch:
        return self._source.batch(step)


def batches(source: BatchSource, steps: range, workers: int) -> Iterator[Batch]:
    """Yield the batch of each step; a batch depends on its step alone, so `workers` only change when it is made."""
    return iter(DataLoader(_Steps(source), batch_size=None, sampler=steps, num_workers=workers))
