"""Data in, checked tensors out: arrays of any library, binarization, and data sets (MNIST, digits, files) in a fixed split."""

from .arrays import as_rows, batch_of, same_rows
from .binarize import binarize, check_grey, static_binarization
from .columns import Column
from .data_set import Data
from .datasets import load
from .dequantize import dequantize
from .frames import NumericTable, table
from .manifest import write_manifest, write_shards
from .splits import Split
from .stored import Stored
from .table_layout import TableOptions

__all__ = [
    "Column",
    "Data",
    "NumericTable",
    "Split",
    "Stored",
    "TableOptions",
    "as_rows",
    "batch_of",
    "binarize",
    "check_grey",
    "dequantize",
    "load",
    "same_rows",
    "static_binarization",
    "table",
    "write_manifest",
    "write_shards",
]
