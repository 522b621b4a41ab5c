"""The first result with pythae: its training pipeline, and log p(x) of test rows by its own importance sampling."""

import tempfile

import torch
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.pipelines import TrainingPipeline
from pythae.trainers import BaseTrainerConfig
from sklearn.datasets import load_digits
from torch import nn

x = torch.tensor(load_digits().data > 7, dtype=torch.float32)
train, test = x[:1437], x[1437:]


class Encoder(BaseEncoder):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.loc, self.log_var = nn.Linear(64, 8), nn.Linear(64, 8)

    def forward(self, x):
        h = self.hidden(x)
        return ModelOutput(embedding=self.loc(h), log_covariance=self.log_var(h))


class Decoder(BaseDecoder):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.Sigmoid())

    def forward(self, z):
        return ModelOutput(reconstruction=self.net(z))


model = VAE(VAEConfig((64,), 8, reconstruction_loss="bce"), Encoder(), Decoder())
settings = BaseTrainerConfig(
    tempfile.mkdtemp(), per_device_train_batch_size=100, num_epochs=20, learning_rate=1e-3, no_cuda=True
)
TrainingPipeline(model=model, training_config=settings)(train_data=train, eval_data=test)
print("log p(x)", model.get_nll(test, n_samples=1000, batch_size=100))
