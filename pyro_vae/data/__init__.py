"""Data in, checked tensors out: arrays of any library, binarization, and data sets (MNIST, digits, files) in a fixed split."""

from .arrays import as_rows, batch_of, same_rows
from .binarize import binarize, check_grey, static_binarization
from .datasets import Data, load
from .dequantize import dequantize
from .splits import Split
from .table_layout import TableOptions

__all__ = [
    "Data",
    "Split",
    "TableOptions",
    "as_rows",
    "batch_of",
    "binarize",
    "check_grey",
    "dequantize",
    "load",
    "same_rows",
    "static_binarization",
]
