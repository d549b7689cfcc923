"""Validation batches for methods that learn from them, one after the other without end."""

from collections.abc import Iterator

from recemb.data.batch import Batch
from recemb.data.prepared import Prepared


class ValidationStream:
    """An endless pass over the validation split, shuffled anew in every epoch.

    Which batch comes next is a function of the position alone, so that a resumed fit goes on with
    the batch that it would have had.

    Attributes:
        position: batches handed out so far.

    Args:
        prepared: the data.
        batch_size: examples in a batch; the last of an epoch may be smaller.
        seed: of the shuffle.
    """

    def __init__(self, prepared: Prepared, *, batch_size: int, seed: int) -> None:
        self.position = 0
        self._prepared = prepared
        self._batch_size = batch_size
        self._seed = seed
        self._batches: Iterator[Batch] = iter(())
        self._next = -1

    def next(self) -> Batch:
        """Return the next batch.

        Raises:
            ValueError: if there is no validation split.
        """
        per_epoch = self._prepared.num_batches("val", batch_size=self._batch_size)
        if self._next != self.position or self.position % per_epoch == 0:
            self._batches = self._prepared.batches(
                "val",
                batch_size=self._batch_size,
                seed=self._seed,
                epoch=self.position // per_epoch,
                shuffle=True,
                first_batch=self.position % per_epoch,
            )
        batch = next(self._batches)
        self.position += 1
        self._next = self.position
        return batch
