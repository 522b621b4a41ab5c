"""The first result with pyro_vae: log p(x) of test rows with its errors."""

from sklearn.datasets import load_digits

from pyro_vae import MLP, VAE, Conditional, StandardNormal, bernoulli, fit, log_likelihood, normal

x = (load_digits().data > 7).astype("float32")
train, test = x[:1437], x[1437:]
vae = VAE(
    prior=StandardNormal(8),
    likelihood=Conditional(MLP(8, 64, (64,)), bernoulli),
    posterior=Conditional(MLP(64, 2 * 8, (64,)), normal),
)
fit(vae, train, epochs=20, batch_size=100, verbose=False)
print(log_likelihood(vae.model, vae.guide, test, num_samples=1000, verbose=False))
