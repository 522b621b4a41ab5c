"""The batches of an epoch, with the random state between its steps noted, and found again."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from pyro_vae.common.random import stream

from .batch_source import Batch, TrainingData
from .shuffle import FURTHER, SHUFFLE, ShuffledBatches
from .training_state import EpochPosition, load_noise_states, noise_states

STREAMS = {"order": SHUFFLE, "further": FURTHER}  # of a seed; "further" batches are the aggressive encoder's


class EpochBatches:
    """The shuffled batches of one epoch, from a position in it on. For inside the noise's own stream.

    Order and binarization depend on seed and epoch alone.

    Args:
        data: the training rows.
        seed: of the run.
        position: where the epoch is; its random state is loaded, if it is past the first step.
        further: whether other batches will be asked for, too.
    """

    def __init__(self, data: TrainingData, seed: int, position: EpochPosition, further: bool) -> None:
        self.data, self.position = data, position
        self.orders: dict[str, ShuffledBatches] = {}
        for name, number in STREAMS.items() if further else [("order", SHUFFLE)]:
            order = data.shuffle(stream(seed, number, position.epoch))
            if name in position.batches_taken:
                states = {k: position.generator_states[f"{name}.{k}"] for k in ("before", "now")}
                order.seek(position.batches_taken[name], states)
            self.orders[name] = order
        load_noise_states(position.generator_states, data.device)

    def __iter__(self) -> Iterator[tuple[Tensor, Batch]]:
        """Hand out what is left of the epoch: row numbers, and the batch of them."""
        return self.data.one_pass(self.orders["order"])

    def further(self) -> Iterator[tuple[Tensor, Batch]]:
        """Hand out other batches, without end."""
        while True:
            yield from self.data.one_pass(self.orders["further"])

    def note(self, versions: tuple[int, ...]) -> None:
        """Note the generators' states in the position, between two steps; `versions` are of weights and buffers."""
        states = noise_states(self.data.device)
        for name, order in self.orders.items():
            states |= {f"{name}.{k}": state for k, state in order.states().items()}
        self.position.generator_states = states
        self.position.batches_taken = {name: order.taken for name, order in self.orders.items()}
        self.position.versions = versions  # last: whoever is interrupted here must not take this for a whole state
