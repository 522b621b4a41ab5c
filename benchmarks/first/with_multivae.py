"""The first result with MultiVae: halves of each digit as modalities, and their joint log p(x) by its own sampling."""

import tempfile

import torch
from multivae.data.datasets.base import MultimodalBaseDataset
from multivae.models import MVAE, MVAEConfig
from multivae.trainers import BaseTrainer, BaseTrainerConfig
from sklearn.datasets import load_digits

x = torch.tensor(load_digits().data > 7, dtype=torch.float32)
train, test = (MultimodalBaseDataset({"upper": part[:, :32], "lower": part[:, 32:]}) for part in (x[:1437], x[1437:]))
settings = MVAEConfig(
    n_modalities=2,
    input_dims={"upper": (32,), "lower": (32,)},
    latent_dim=8,
    decoders_dist={"upper": "bernoulli", "lower": "bernoulli"},
)
model = MVAE(settings)
how = BaseTrainerConfig(
    output_dir=tempfile.mkdtemp(), per_device_train_batch_size=100, num_epochs=20, learning_rate=1e-3
)
BaseTrainer(model, train_dataset=train, eval_dataset=test, training_config=how).train()
rows = len(test)
print("log p(x)", -sum(model.compute_joint_nll(test[i : i + 1], K=1000).item() for i in range(rows)) / rows)
