"""Config of a run: names and numbers only, so that reading one never runs anything."""

from __future__ import annotations

import dataclasses
import functools
import sys
import types
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from cyclopts import Parameter

from pyro_vae.common.keywords import suggest
from pyro_vae.data.mnist import CLASSES
from pyro_vae.errors import UsageError

Options = dict[str, str]  # from the command line all are strings; the registry reads them by their defaults


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config:
    """The model, the data and the training of a run. "auto" is resolved from the data and recorded as resolved.

    Parameters
    ----------
    data
        digits (bundled), mnist, fashion_mnist, kmnist, omniglot, svhn, cifar10, celeba, a file (.npy, .npz, .csv, .tsv,
        .parquet, .h5ad), a folder of PNGs or JPEGs, of shards with a manifest.json, or of a Zarr array.
    validation
        File of the rows to choose by, where DATA is a file of training rows; without it, a tenth of those. Of tables the
        columns of DATA, by name.
    test
        File of the rows to report on, likewise. A folder with train.csv, validation.csv and test.csv (or folders of pictures
        called so) is named as DATA alone.
    binarization
        none, static (once, seeded) or dynamic (training rows anew each epoch); auto: dynamic for mnist, fashion_mnist and
        kmnist under a Bernoulli, else none.
    data_seed
        Of binarization, and of the split of a file of one's own.
    columns
        Of a table: auto takes texts for categories and empty cells for missing, and finds a likelihood for each column, which
        is told; auto,NAME=FAMILY,OTHER=ignore corrects it. Without it, columns are of numbers.
    header
        Of a .csv: yes or no, its first line holds names, or a row; auto: names, if they look so (numbers may, as years do).
    index
        Column of a .csv that only names the rows, by name, and is no part of x; none; auto: an unnamed one, or one called so.
    label
        Column of a .csv (array of an .npz) of labels, by name: no part of x, and shown beside the rows.
    split_by
        Column of a table that splits its rows, no part of x: its values are train, validation and test, or groups, such as
        patients, whose rows stay together.
    memory
        Leave the training rows on disk, and take so much memory for them, such as '2 GB'; 1 GB where DATA is a folder of
        shards (pyro-vae manifest) or a Zarr array.
    num_rows
        How many rows are on disk, where you know; another number is refused. It is asked for of a Zarr array with chunks that
        were never written, whose first so many rows are taken.
    missing_value
        Of a table: what stands for a value that was not observed, such as -999, beside empty cells (with --missing, or
        --columns).
    missing
        NaN and empty cells are values that were not observed: the likelihood skips them, the encoder sees which they are.
    standardize
        The networks see each element in standard units, (x - mean) / std of the training rows, of images all pixels alike;
        log p(x) stays that of x. By default under densities of real numbers, unless their scale is given (normal_fixed).
    normalize
        The encoder alone sees x in such units; no density moves. By default where x is in no standard units by then, but for
        images within 0 to 1.
    model
        The graph, by a name that `pyro-vae parts` lists: vae, hierarchical, sequence ...
    model_options
        Its options, as in --model hierarchical --model.levels 2.
    prior
        p(z) of a vae, by a name that `pyro-vae parts` lists.
    prior_options
        Its options, as in --prior vamp --prior.components 500.
    likelihood
        p(x given z), by name; auto: binomial for digits, bernoulli for zeros and ones, discretized_logistic for bytes (whole
        numbers 0 to 255), else normal.
    likelihood_options
        As in --likelihood binomial --likelihood.total-count 16.
    posterior
        q(z given x) of a vae, by name.
    posterior_options
        As in --posterior flow --posterior.transforms 4.
    network
        mlp, or conv for images of any size.
    hidden
        Widths of the mlp's hidden layers; the decoder mirrors them.
    activation
        Between the mlp's layers.
    latent_dim
        Dimensions of z.
    objective
        Bound that is trained, by a name that `pyro-vae parts` lists.
    objective_options
        As in --objective iwae --objective.particles 8.
    gradient
        Its gradient estimator, by name.
    kl
        How its KL is treated, by name: plain, beta, free_bits ...
    kl_options
        As in --kl beta --kl.beta 4 --kl.schedule cyclical.
    epochs
        Passes over the training rows.
    batch_size
        Rows a step.
    drop_last
        Leave out the shorter last batch of each epoch.
    shards
        Parts of each batch, a power of two, that 1, 2, ... processes share under torchrun, with the same bits.
    learning_rate
        Of Adam.
    schedule
        Of the learning rate.
    warmup
        Fraction of training over which the learning rate rises.
    patience
        Stop after so many epochs without a better validation ELBO.
    engine
        How a step is computed, with the same results but for rounding: as the programs run, from a trace, compiled.
    precision
        Of products within layers while training; tf32 is for CUDA alone.
    autotune
        Have torch's compiler choose kernels of matrix products by timing them, on CUDA; its cache on disk keeps the times.
    seed
        Of weights, order, binarization during training, and noise.

    Examples
    --------
    >>> config = Config(data="mnist", objective="iwae", objective_options={"particles": "8"})
    >>> config.resolved().likelihood, config.resolved().binarization
    ('bernoulli', 'dynamic')
    >>> Config.from_dict(config.to_dict()) == config
    True
    >>> Config.from_dict({"epoch": 5})
    Traceback (most recent call last):
        ...
    pyro_vae.errors.UsageError: unknown config key 'epoch'; did you mean 'epochs'?
    """

    data: Annotated[str, Parameter(name=("--data", "--train"))] = "digits"
    validation: str | None = None
    test: str | None = None
    binarization: Literal["auto", "none", "static", "dynamic"] = "auto"
    data_seed: int = 0
    columns: str | None = None
    header: Literal["auto", "yes", "no"] = "auto"
    index: str = "auto"
    label: str | None = None
    split_by: str | None = None
    memory: str | None = None
    num_rows: int | None = None
    missing_value: str | None = None
    missing: Annotated[bool, Parameter(negative=())] = False
    standardize: bool | None = None
    normalize: bool | None = None
    model: str = "vae"
    model_options: Options = field(default_factory=dict)
    prior: str = "standard_normal"
    prior_options: Options = field(default_factory=dict)
    likelihood: str = "auto"
    likelihood_options: Options = field(default_factory=dict)
    posterior: str = "normal"
    posterior_options: Options = field(default_factory=dict)
    network: Literal["mlp", "conv"] = "mlp"
    hidden: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative=())] = (256, 256)
    activation: Literal["relu", "tanh", "softplus", "silu"] = "relu"
    latent_dim: int = 16
    objective: str = "elbo"
    objective_options: Options = field(default_factory=dict)
    gradient: str = "pathwise"
    kl: str = "plain"
    kl_options: Options = field(default_factory=dict)
    epochs: int = 100
    batch_size: int = 128
    drop_last: Annotated[bool, Parameter(negative=())] = False
    shards: int = 1
    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup: float = 0.02
    patience: int | None = None
    engine: Literal["auto", "eager", "trace", "compile", "graph"] = "auto"
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    autotune: Annotated[bool, Parameter(negative=())] = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in POSITIVE.items():
            values = getattr(self, name)
            for value in values if isinstance(values, tuple) else (values,):
                if value is not None and not (value > 0 and is_finite(value)):
                    raise UsageError(f"{name} must be {kind} greater than 0, got {value}")
        for name in (name for name in self.__dataclass_fields__ if name.endswith("_options")):
            for option, value in getattr(self, name).items():
                if isinstance(value, float) and not is_finite(value):
                    raise UsageError(f"--{name.removesuffix('_options')}.{option} must be a finite number, got {value}")
        if len(self.hidden) > LAYERS:
            raise UsageError(
                f"hidden names {len(self.hidden):,} layers, wanted at most {LAYERS:,}: a chain of dense layers learns nothing "
                "at a tenth of that depth. Give a few widths, such as --hidden 256 256."
            )
        if self.columns is not None and self.likelihood not in ("auto", "columns"):
            raise UsageError(
                f"--columns {self.columns} finds a likelihood for each column, and --likelihood {self.likelihood} is one of "
                f"all: leave out either; one column alone is corrected by --columns auto,NAME={self.likelihood}"
            )
        if self.validation is not None and self.test is None:
            raise UsageError("--validation without --test: name a file for the test rows, too; --test alone is enough")
        if not 0 <= self.warmup < 1:
            raise UsageError(f"warmup is a fraction of training, 0 to 1, got {self.warmup}")
        if self.seed < 0 or self.data_seed < 0:
            raise UsageError("seeds are whole numbers from 0")

    def resolved(self) -> Config:
        """Return the same config with every "auto" decided."""
        images = self.data in CLASSES
        binary = self.binarization in ("static", "dynamic")
        likelihood = self.likelihood if self.columns is None else "columns"
        if likelihood == "auto":
            likelihood = "bernoulli" if images or binary else "binomial" if self.data == "digits" else "normal"
        binarization = self.binarization
        if binarization == "auto":
            binarization = "dynamic" if images and likelihood == "bernoulli" else "none"
        return dataclasses.replace(self, likelihood=likelihood, binarization=binarization)

    def to_dict(self) -> dict[str, Any]:
        """Return plain names and numbers, for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def of_run(cls, values: Any) -> Config:
        """Read the config of a run's folder: options that came after it stand as they were when it was trained."""
        return cls.from_dict(BEFORE | values if isinstance(values, dict) else values)

    @classmethod
    def from_dict(cls, values: Any) -> Config:
        """Read the config that `to_dict` wrote; refuse unknown keys, with a suggestion, and values of another type."""
        if not isinstance(values, dict):
            raise UsageError(f"a config is a JSON object of names and values, got {type(values).__name__}")
        known = field_types()
        for key, value in values.items():
            if key not in known:
                raise UsageError(f"unknown config key {key!r}; {suggest(key, known, otherwise='known keys:')}")
            if not fits(value, known[key]):
                raise UsageError(f"config key {key!r}: {shortened(value)} is not {describe_type(known[key])}")
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**arguments)


def is_finite(number: float) -> bool:
    """Return whether a number is one that a double can be."""
    return -sys.float_info.max <= number <= sys.float_info.max


LAYERS = 1_000  # of the mlp, at most
BEFORE = {"standardize": False, "normalize": False}  # in configs that lack them
WHOLE = ("hidden", "latent_dim", "epochs", "batch_size", "patience", "shards", "num_rows")
POSITIVE = dict.fromkeys(WHOLE, "a whole number") | {"learning_rate": "a finite number"}


@functools.cache
def field_types() -> dict[str, Any]:
    """Evaluate the types of a config's fields, once."""
    return get_type_hints(Config)


def fits(value: Any, hint: Any) -> bool:
    """Return whether a JSON value is of a field's type."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in args
    if origin in (Union, types.UnionType):
        return any(fits(value, a) for a in args)
    if origin is tuple:
        return isinstance(value, list | tuple) and all(fits(v, args[0]) for v in value)
    if origin is dict:  # a part's options: plain values, or lists of them
        if not isinstance(value, dict):
            return False
        plain = (v for option in value.values() for v in (option if isinstance(option, list) else [option]))
        return all(isinstance(v, str | int | float | bool | None) for v in plain)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool)


def shortened(value: Any) -> str:
    """Write a value of a config, the first of it where it is long."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def describe_type(hint: Any) -> str:
    """Describe a field's type in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin in (Union, types.UnionType):
        return " or ".join(describe_type(a) for a in args)
    if origin is tuple:
        return f"a list of {describe_type(args[0])}"
    if origin is dict:
        return "an object of names and plain values"
    return {int: "a whole number", float: "a number", str: "a string", type(None): "null"}.get(hint, str(hint))
