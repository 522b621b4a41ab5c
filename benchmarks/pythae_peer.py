"""The case in pythae: its VAE of the same layers, by its own trainer."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from torch import Tensor, nn
from torch.nn.functional import softplus

from .cases import PIXELS, Case


class Encoder(BaseEncoder):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.hidden = nn.Linear(PIXELS, case.hidden)
        self.loc, self.log_var = (nn.Linear(case.hidden, case.latent) for _ in range(2))

    def forward(self, x: Tensor) -> ModelOutput:
        h = softplus(self.hidden(x))
        return ModelOutput(embedding=self.loc(h), log_covariance=self.log_var(h))


class Decoder(BaseDecoder):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(case.latent, case.hidden), nn.Softplus(), nn.Linear(case.hidden, PIXELS))

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.net(z).sigmoid())


def trainer(case: Case, x: Tensor) -> Callable[[int], Any]:
    """``run(steps)``: as many of its training steps, its progress bars unread."""
    model = VAE(VAEConfig((PIXELS,), case.latent, reconstruction_loss="bce"), Encoder(case), Decoder(case))
    folder = tempfile.mkdtemp()

    def run(steps: int) -> None:
        rows = {"data": x.repeat(-(-steps * case.batch // len(x)), 1)[: steps * case.batch].cpu()}
        config = BaseTrainerConfig(
            folder,
            per_device_train_batch_size=case.batch,
            num_epochs=1,
            learning_rate=1e-3,
            no_cuda=x.device.type == "cpu",
        )
        dataset = [ModelOutput(data=row) for row in rows["data"]]
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            engine = BaseTrainer(model, dataset, training_config=config)
            engine.prepare_training()
            engine.train_step(1)
        torch.set_grad_enabled(True)

    return run
