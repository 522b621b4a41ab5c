"""A run opened from its folder: its model, rebuilt, and the data that it was trained on."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_vae.common.device import resolve_device
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.common.plain_text import plain
from pyro_vae.common.random import seeded
from pyro_vae.common.safe_read import check_seal
from pyro_vae.data import Column, Data, Split, load
from pyro_vae.data.sparse_data import ANNOTATED
from pyro_vae.data.table_layout import TableOptions
from pyro_vae.data.user_files import ENDINGS
from pyro_vae.errors import DataError, PyroVAEError, RunFolderError, UsageError

from . import folder
from .build_limits import bounded_build
from .config import Config
from .custom_components import NOTHING, Components
from .evaluations import AGAIN, evaluations, is_stale
from .kinds.kind import ModelKind
from .registry import build, check_names, kind_of, resolved, unregistered
from .weights import Weights, current_weights

FAULTS = (PyroVAEError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError, MemoryError)


@dataclass(frozen=True)
class Run:
    """A run opened from its folder: its config, its trained model, and a record of its data."""

    path: Path
    config: Config
    record: dict[str, Any]
    vae: Any
    components: Components = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row."""
        return tuple(self.record["data"]["shape"])

    @property
    def kind(self) -> ModelKind:
        """Of the model: what its programs take of a split, and what can be asked of it."""
        return kind_of(self.config)

    @property
    def columns(self) -> tuple[Column, ...]:
        """Of the table that it was trained on; none, if its columns have no names."""
        try:
            return tuple(map(Column.from_dict, self.record["data"].get("columns", [])))
        except (TypeError, ValueError) as error:
            raise RunFolderError(f"{self.path / 'config.json'} cannot be used: {error}") from error

    @property
    def column_names(self) -> list[str]:
        """Of the table that it was trained on."""
        return [column.name for column in self.columns]

    def rows(self, split: Split) -> tuple[Tensor, ...]:
        """Return the arguments of the programs that log p(x) of a split is of."""
        return self.kind.rows(split, self.shape)

    @property
    def evidence(self) -> dict[str, Any]:
        """What evidence.json holds: log p(x) and its errors; nothing before the run is scored with the weights it has now.

        Evidence of other rows, or by another method, has files of its own (:mod:`pyro_vae.runs.evaluations`); it is what
        stands here only where all test rows were not scored by importance sampling. Evidence of weights from before (of an
        interruption, say, and training has gone on) is left out, with a note.
        """
        return previous(self.path)


@suggest_keywords
def load_run(
    path: Path | str, components: Components = NOTHING, device: str = "cpu", *, allow_nonfinite: bool = False
) -> Run:
    """Rebuild the model of a run from its folder alone, and from parts of one's own if it was trained with such.

    Of a run that is still training, or was killed, it is the best model so far, from the newest checkpoint that is whole, or
    from model.safetensors if that is of as many epochs.

    Args:
        path: the folder.
        components: name to part, as :func:`~pyro_vae.runs.train_run.train_run` had them
            (:mod:`pyro_vae.runs.custom_components`); a config holds names only, and nothing in a folder is ever imported or
            executed.
        device: where to put the model.
        allow_nonfinite: hand out a model with NaN or infinite weights, which is refused otherwise.

    Returns:
        A :class:`Run`: its ``vae``, ``config``, ``record`` and ``evidence``.

    Raises:
        RunFolderError: the folder, its config or its weights are missing, damaged or of something else, or it needs a part
            that is neither registered nor among the components; another run took its place while it was read.
        UsageError: a component with the name of a registered part.
    """
    path = Path(path)
    record = folder.read_config(path)
    check_names(components)
    source = Weights.of(path)
    try:
        config = Config.of_run(record["config"])
        if unknown := unregistered(config, components):
            raise UsageError(format_unknown(unknown))
        config = resolved(config, components)
        with seeded(0), bounded_build(source.layout):
            vae = build(config, row_shape(record), components=components)
    except FAULTS as error:
        raise RunFolderError(f"{path / 'config.json'} cannot be used: {' '.join(str(error).split())[:500]}") from error
    source.fill(vae, allow_nonfinite)
    check_seal(record, path / "config.json")
    check_still(path, record)
    return Run(path, config, record, vae.to(resolve_device(device)).eval(), components)


def row_shape(record: dict[str, Any]) -> tuple[int, ...]:
    """Return the shape of a row that a config tells; a ValueError where it has no elements."""
    shape = tuple(record["data"]["shape"])
    if not all(type(length) is int and length >= 1 for length in shape):
        raise ValueError(f"data.shape is {list(shape)}, and a row has lengths from 1")
    return shape


def check_still(path: Path, record: dict[str, Any]) -> None:
    """Refuse to go on with a folder in which another run has taken the place of the one with this config.json."""
    if folder.read_config(path) != record:
        raise RunFolderError(f"{path} has become another run meanwhile (--overwrite): open it again")


def format_unknown(unknown: list[tuple[str, str]]) -> str:
    """Name the parts that a run needs, and how to give them."""
    named = " and ".join(f"the {role} {name!r}" for role, name in unknown)
    given = ", ".join(f"{name!r}: ..." for _, name in unknown)
    what = "which is no registered part" if len(unknown) == 1 else "which are no registered parts"
    return f"the run uses {named}, {what}. Pass load_run(path, components={{{given}}}), in Python."


def open_data(run: Run, data_dir: Path | None = None) -> Data:
    """Load the data a run was trained on, and tell what it was read as.

    Raises:
        RunFolderError: it is no longer the same.
    """
    data = read_data(run, data_dir)
    print(f"note: {plain(data.notes[0])}", file=sys.stderr)
    return data


def read_data(run: Run, data_dir: Path | None = None) -> Data:
    """:func:`open_data`, without a word."""
    digest = run.record["data"]["digest"]
    config = replace(run.config, data=str(located(run.config.data, data_dir, beside(run))))
    data = load_data(config, data_dir, digest=digest, known=run.columns if run.config.columns is not None else ())
    if data.digest != digest:
        raise RunFolderError(
            f"the data of {run.path} has changed: {run.config.data} had digest {digest[:12]}… when it was "
            f"trained, and has {data.digest[:12]}… now. Restore the data, or train again."
        )
    return data


def load_data(
    config: Config,
    data_dir: Path | None,
    download: bool = False,
    digest: str | None = None,
    known: tuple[Column, ...] = (),
) -> Data:
    """Load the data that a config names, as it says.

    Args:
        config: any, with its binarization decided.
        data_dir, download: as for :func:`~pyro_vae.data.load`; `data_dir` is also where a file that has moved is looked for,
            or, renamed, that file itself.
        digest: of the data that a run was trained on: a table that has another is read once more as earlier versions did, and
            that reading is returned if it has this digest.
        known: the columns of a run, which are found again by their names, with the same codes.
    """
    missing = config.missing or config.columns is not None  # whether some are is seen once it is read

    def read(table: TableOptions) -> Data:
        return load(
            config.data, data_dir=data_dir, download=download, table=table, sequences=kind_of(config).ragged,
            binarization=config.binarization, seed=config.data_seed, missing=missing, memory=config.memory,
            num_rows=config.num_rows, validation=config.validation, test=config.test, verbose=False,
        )  # fmt: skip

    config = found_again(config, data_dir)
    options = TableOptions(
        config.header,
        config.index,
        config.label,
        columns=config.columns,
        split_by=config.split_by,
        known=known,
        missing_value=config.missing_value,
    )
    if digest is None or options.given or not config.data.lower().endswith(".csv"):
        return read(options)
    try:
        data = read(options)
        former = data if data.digest == digest else read(TableOptions(former=True))
    except DataError:  # of either: what it was read as then counts
        return read(TableOptions(former=True))
    return former if former.digest == digest else data


def beside(run: Run) -> Path | None:
    """Return where the data file of a run is, as seen from the run's folder: both may have moved together."""
    told = run.record["data"].get("beside")
    return run.path / told if isinstance(told, str) else None


def found_again(config: Config, data_dir: Path | None) -> Config:
    """Say where the files of a config are now: those of other splits that have moved lie beside the training file."""
    data = located(config.data, data_dir)
    beside: dict[str, Any] = {
        split: located(path, data_dir, Path(data).parent / Path(path).name)
        for split in ("validation", "test")
        if (path := getattr(config, split)) is not None
    }
    return replace(config, data=data, **beside)


def located(data: str, data_dir: Path | None, otherwise: Path | None = None) -> str:
    """Return where a data file is: as the config says, or of that name in `data_dir`, or `data_dir` itself, or `otherwise`."""
    if not data.lower().endswith((*ENDINGS, ANNOTATED)) or Path(data).exists():
        return data
    if data_dir is None:
        return str(otherwise) if otherwise is not None and otherwise.is_file() else data
    moved = data_dir if data_dir.is_file() else data_dir / Path(data).name
    return str(moved) if moved.is_file() else data


def previous(path: Path) -> dict[str, Any]:
    """Read the evidence of a folder's weights: evidence.json, or else the first of other evaluations; {} without any."""
    if (path / "evidence.json").is_file():
        summary = folder.read_summary(path / "evidence.json")
        if not is_stale(summary, current_weights(path)):
            return summary
        note = (
            "evidence.json is of weights from before, which the run has no longer: it is left out. Score the run again"
        )
        print(f"note: {path}: {note}: {AGAIN} {path}", file=sys.stderr)
    found = evaluations(path)
    return found[0].summary if found else {}
