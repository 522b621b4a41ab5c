"""Buffers that hold NaN or −∞ on purpose (what is missing, a mask) are no change, no other number, and no damage."""

import pytest
import torch

from pyro_vae import MLP, VAE, Checkpointer, Conditional, StandardNormal, fit, normal
from pyro_vae.errors import CheckpointError, RunFolderError
from pyro_vae.runs.weights import Weights, save_model
from pyro_vae.training.checkpoint_state import copy_into
from pyro_vae.training.micro_batches import coupled
from pyro_vae.training.trainer import Trainer

X = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))


class Decoder(torch.nn.Sequential):
    """Knows what was never measured, as NaN, and which elements may see each other, as a mask of −∞."""

    def __init__(self):
        super().__init__(MLP(1, 6, (4,)))
        self.register_buffer("measured", torch.tensor([1.0, torch.nan, 2.0]))
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))

    def forward(self, z):
        return super().forward(z) * self.mask.softmax(-1).sum() / 3 + self.measured.nan_to_num()[0]


def vae():
    torch.manual_seed(0)
    return VAE(StandardNormal(1), Conditional(Decoder(), normal), Conditional(MLP(3, 2, (4,)), normal))


def train(model, **options):
    return fit(model, X, epochs=2, batch_size=16, verbose=False, **options)


@pytest.mark.parametrize("shards", [1, 2])
def test_they_train_in_shards_and_by_a_graph(shards):
    assert (
        "engine trace" in (said := train(vae(), shards=shards, engine="trace").engine)
        and "eager from here on" not in said
    )


def test_they_are_the_same_by_parts_of_a_batch(monkeypatch):
    steps, update = [], Trainer.update
    monkeypatch.setattr(Trainer, "update", lambda trainer, *a: steps.append(trainer.step) or update(trainer, *a))
    train(vae())
    assert coupled(steps[0], (X,)) is None


def test_a_training_goes_on_with_them_and_other_weights_that_are_not_finite_are_refused(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    train(vae(), callbacks=[checkpointer])
    assert train(vae(), resume=checkpointer.newest()).exact
    weights = dict(vae().state_dict())
    with pytest.raises(CheckpointError, match=r"non-finite values in 'likelihood.net.0.0.bias'"):
        copy_into(weights, weights | {"likelihood.net.0.0.bias": torch.full((4,), torch.nan)})


def test_a_model_is_loaded_with_them_and_with_nothing_else_that_is_not_finite(tmp_path):
    model = vae()
    save_model(tmp_path, model)
    Weights.of(tmp_path).fill(vae())
    with torch.no_grad():
        model.likelihood.net.measured[0] = torch.nan
    save_model(tmp_path, model)
    with pytest.raises(RunFolderError, match=r"non-finite values in 'likelihood.net.measured'"):
        Weights.of(tmp_path).fill(vae())
