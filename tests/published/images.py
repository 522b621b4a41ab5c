"""Autoencoders of images: Pyro's tutorial, conditional, convolutional, with labels, with several modalities."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import nn

from pyro_vae import MLP, VAE, Conditional, SkipMissing, StandardNormal, WithMask, bernoulli, normal

from .recipe import N, Pair, bits, cat, halves, mlp, recipe

Z = 2


class Flagship(nn.Module):
    """VAE with fully connected networks; x is flattened where it is observed."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = mlp(9, 2 * Z), mlp(Z, 9)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = x.new_zeros(torch.Size((x.shape[0], Z)))
            z_scale = x.new_ones(torch.Size((x.shape[0], Z)))
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            loc_img = self.decoder(z).sigmoid()
            pyro.sample("obs", dist.Bernoulli(loc_img).to_event(1), obs=x.reshape(-1, 9))

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_scale = halves(self.encoder(x.reshape(-1, 9)))
            pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))


@recipe("vae", "Pyro's VAE tutorial, Bernoulli, obs=x.reshape(-1, 784)")
def vae():
    net = Flagship()
    return Pair(net.model, net.guide, bits(N, 1, 3, 3), net=net)


@recipe("vae-beta", "beta-VAE: poutine.scale on the latents of both programs")
def vae_beta():
    net = Flagship()

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def model(self, x):
            pyro.module("decoder", net.decoder)
            with pyro.plate("data", len(x)):
                with poutine.scale(scale=4.0):
                    z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=net.decoder(z)).to_event(1), obs=x)

        def guide(self, x):
            pyro.module("encoder", net.encoder)
            with pyro.plate("data", len(x)), poutine.scale(scale=4.0):
                pyro.sample("z", dist.Normal(*halves(net.encoder(x))).to_event(1))

    both = Scaled()
    return Pair(both.model, both.guide, bits(N, 9), net=both, weighed=True)


@recipe("vae-missing", "MIWAE (Mattei & Frellsen 2019), of the package's parts")
def vae_missing():
    net = VAE(
        StandardNormal(Z),
        SkipMissing(Conditional(MLP(Z, 5, hidden=(6,)), bernoulli)),
        Conditional(WithMask(MLP(10, 2 * Z, hidden=(6,))), normal),
    )
    x = bits(N, 5)
    gaps = x.clone()
    gaps[0, 1] = gaps[2, 0] = gaps[2, 3] = torch.nan
    return Pair(net.model, net.guide, x, net=net, missing=gaps)


class ConditionalVAE(nn.Module):
    """Pyro's CVAE: a baseline fills in the image, the prior and the recognition network see both; -1 is hidden."""

    def __init__(self):
        super().__init__()
        self.baseline, self.prior_net = mlp(4, 5), mlp(4 + 5, 2 * Z)
        self.generation, self.recognition = mlp(Z, 5), mlp(4 + 5, 2 * Z)

    def model(self, ys, xs):
        pyro.module("generation", self)
        with pyro.plate("data", xs.shape[0]):
            with torch.no_grad():
                y_hat = self.baseline(xs).sigmoid()
            zs = pyro.sample("z", dist.Normal(*halves(self.prior_net(cat(xs, y_hat)))).to_event(1))
            loc = self.generation(zs).sigmoid()
            pyro.sample("y", dist.Bernoulli(loc, validate_args=False).mask(ys != -1).to_event(1), obs=ys)
            pyro.deterministic("y_loc", loc)

    def guide(self, ys, xs):
        with pyro.plate("data", xs.shape[0]):
            pyro.sample("z", dist.Normal(*halves(self.recognition(cat(xs, ys)))).to_event(1))


@recipe("cvae", "Pyro's conditional VAE, with a baseline network")
def cvae():
    net = ConditionalVAE()
    return Pair(net.model, net.guide, bits(N, 5), (torch.rand(N, 4),), net=net)


class M2(nn.Module):
    """Kingma et al. 2014, as in Pyro's ss-vae example; `enumerated` sums over the labels."""

    def __init__(self, classes=3, columns=6):
        super().__init__()
        self.classes = classes
        self.decoder, self.encoder_y = mlp(Z + classes, columns), mlp(columns, classes)
        self.encoder_z = mlp(columns + classes, 2 * Z)

    def model(self, xs, ys=None):
        pyro.module("ss_vae", self)
        with pyro.plate("data", xs.size(0)):
            prior = xs.new_zeros([xs.size(0), Z])
            zs = pyro.sample("z", dist.Normal(prior, prior + 1).to_event(1))
            ys = pyro.sample(
                "y", dist.OneHotCategorical(xs.new_ones([xs.size(0), self.classes]) / self.classes), obs=ys
            )
            loc = self.decoder(cat(zs, ys)).sigmoid()
            pyro.sample("x", dist.Bernoulli(loc, validate_args=False).to_event(1), obs=xs)

    def guide(self, xs, ys=None):
        with pyro.plate("data", xs.size(0)):
            if ys is None:
                ys = pyro.sample("y", dist.OneHotCategorical(logits=self.encoder_y(xs)))
            pyro.sample("z", dist.Normal(*halves(self.encoder_z(cat(xs, ys)))).to_event(1))


@recipe("m2-labelled", "Pyro's ss-vae: the labelled rows")
def m2_labelled():
    net = M2()
    labels = torch.eye(3)[torch.arange(N) % 3]
    return Pair(net.model, net.guide, bits(N, 6), (labels,), net=net, x_of=lambda sites: sites["x"], draws_context=True)


@recipe("m2-drawn", "Pyro's ss-vae: the label drawn from its own guide")
def m2_drawn():
    net = M2()
    return Pair(net.model, net.guide, bits(N, 6), net=net)


@recipe("m2-enumerated", "Pyro's ss-vae: the label enumerated in the guide")
def m2_enumerated():
    net = M2()

    def guide(xs):
        return config_enumerate(net.guide, "parallel", expand=True)(xs)

    return Pair(
        net.model, guide, bits(N, 6), net=net, proposal=net.guide, summed=True,
        objective=lambda: TraceEnum_ELBO(max_plate_nesting=1),
    )  # fmt: skip


class Gaussians(nn.Module):
    """A mixture of Gaussians as prior: c, then z given c."""

    def __init__(self):
        super().__init__()
        self.locs = nn.Parameter(2 * torch.randn(3, Z))
        self.decoder, self.classify, self.encoder = mlp(Z, 5), mlp(5, 3), mlp(5 + 3, 2 * Z)

    def model(self, x):
        pyro.module("gmvae", self)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=torch.zeros(3)))
            z = pyro.sample("z", dist.Normal(self.locs[c], 0.7).to_event(1))
            loc, scale = self.decoder(z), torch.tensor(0.8)
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=self.classify(x)))
            one = nn.functional.one_hot(c, 3).to(x)
            loc, scale = halves(self.encoder(cat(x, one)))
            pyro.sample("z", dist.Normal(self.locs[c] + loc / 2, scale).to_event(1))


@recipe("gmvae", "Gaussian mixture VAE (Dilokthanakul et al. 2016)")
def gmvae():
    net = Gaussians()
    return Pair(net.model, net.guide, torch.randn(N, 5), net=net)


class Multimodal(nn.Module):
    """MVAE (Wu & Goodman 2018): two modalities, a product of experts with the prior's."""

    def __init__(self):
        super().__init__()
        self.image, self.text = mlp(Z, 5), mlp(Z, 4)
        self.encode_image, self.encode_text = mlp(5, 2 * Z), mlp(1, 2 * Z)

    def model(self, x, y):
        pyro.module("mvae", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), torch.ones(Z)).to_event(1))
            pyro.sample("image", dist.Bernoulli(logits=self.image(z)).to_event(1), obs=x)
            pyro.sample("text", dist.Categorical(logits=self.text(z)), obs=y)

    def guide(self, x, y):
        with pyro.plate("data", len(x)):
            experts = [halves(self.encode_image(x)), halves(self.encode_text(y.unsqueeze(-1).to(x)))]
            precision = 1 + sum(scale**-2 for _, scale in experts) / 8
            loc = sum(loc * scale**-2 for loc, scale in experts) / 8 / precision
            pyro.sample("z", dist.Normal(loc, precision**-0.5).to_event(1))


@recipe("multimodal", "MVAE (Wu & Goodman 2018): two modalities, product of experts")
def multimodal():
    net = Multimodal()
    return Pair(
        net.model, net.guide, bits(N, 5), (torch.arange(N) % 4,), net=net, x_of=lambda sites: sites["image"],
        draws_context=True,
    )  # fmt: skip


class Convolutional(nn.Module):
    """DCGAN-like decoder: view, then transposed convolutions, which take one batch dimension."""

    def __init__(self):
        super().__init__()
        self.first, self.up = nn.Linear(Z, 8), nn.ConvTranspose2d(2, 1, 3)
        self.conv, self.last = nn.Conv2d(1, 2, 3), nn.Linear(8, 2 * Z)

    def model(self, x):
        pyro.module("decoder", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), Z), 1.0).to_event(1))
            h = torch.relu(self.first(z)).view(-1, 2, 2, 2)
            pyro.sample("x", dist.Bernoulli(logits=2 * self.up(h)).to_event(3), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            h = torch.relu(self.conv(x)).flatten(1)
            pyro.sample("z", dist.Normal(*halves(self.last(h))).to_event(1))


@recipe("conv", "PyTorch's DCGAN decoder: view and ConvTranspose2d")
def conv():
    net = Convolutional()
    return Pair(net.model, net.guide, bits(N, 1, 4, 4), net=net)


@recipe("image-event", "An image likelihood with event_dim=3, of a decoder that unflattens")
def image_event():
    encoder, decoder = (
        nn.Sequential(nn.Flatten(-3), mlp(8, 2 * Z)),
        nn.Sequential(mlp(Z, 8), nn.Unflatten(-1, (2, 2, 2))),
    )
    encoder[1][2].weight.data.mul_(0.2)
    net = VAE(StandardNormal(Z), Conditional(decoder, bernoulli, event_dim=3), Conditional(encoder, normal))
    return Pair(net.model, net.guide, bits(N, 2, 2, 2), net=net)


class Attend(nn.Module):
    """A transformer's block as decoder: tokens of z attend to one another, batch first."""

    def __init__(self, steps=3, width=4):
        super().__init__()
        self.steps, self.width = steps, width
        self.lift, self.place = nn.Linear(Z, steps * width), nn.Parameter(torch.randn(steps, width))
        self.block = nn.TransformerEncoderLayer(width, 2, 8, dropout=0.1, batch_first=True)
        self.out, self.encoder = nn.Linear(width, 4), mlp(steps, 2 * Z)

    def model(self, x):
        pyro.module("decoder", self)
        with pyro.plate("data", x.size(0)):
            z = pyro.sample("z", dist.Normal(torch.zeros(x.size(0), Z), 1.0).to_event(1))
            tokens = self.lift(z).reshape(x.size(0), self.steps, self.width) + self.place
            pyro.sample("x", dist.Categorical(logits=2 * self.out(self.block(tokens))).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", x.size(0)):
            pyro.sample("z", dist.Normal(*halves(self.encoder(x.float()))).to_event(1))


@recipe("transformer", "A transformer block as decoder (nn.TransformerEncoderLayer, dropout)")
def transformer():
    net = Attend()
    return Pair(net.model, net.guide, torch.randint(4, (N, 3)), net=net)


class Pixels(nn.Module):
    """PixelVAE: the decoder reads the pixels before the one that it draws."""

    def __init__(self):
        super().__init__()
        self.register_buffer("before", torch.ones(4, 4).tril(-1))
        self.weight, self.decoder, self.encoder = nn.Parameter(torch.randn(4, 4)), mlp(Z, 4), mlp(4, 2 * Z)

    def model(self, x):
        pyro.module("pixels", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            logits = self.decoder(z) + x @ (self.weight * self.before).T
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*halves(self.encoder(x))).to_event(1))


@recipe("autoregressive", "PixelVAE (Gulrajani et al. 2017): the decoder reads x")
def autoregressive():
    net = Pixels()
    return Pair(net.model, net.guide, bits(N, 4), net=net, reads_x=True)
