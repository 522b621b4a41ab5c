"""The first result with scvi-tools: its model of counts, and log p(x) of test rows by its own sampling."""

import anndata
import scvi
from sklearn.datasets import load_digits

x = load_digits().data.astype("float32")  # counts of 0 to 16 in 64 "genes"
train, test = (anndata.AnnData(part) for part in (x[:1437], x[1437:]))
for part in (train, test):
    scvi.model.SCVI.setup_anndata(part)
model = scvi.model.SCVI(train, n_hidden=64, n_latent=8)
model.train(max_epochs=20, batch_size=100, accelerator="cpu")
print("log p(x)", model.get_marginal_ll(test, n_mc_samples=1000))
