"""Weights that are there as pickles only, read by torch's restricted unpickler."""

import json
import os
from typing import Any

import ml_dtypes
import numpy as np

from t5x.checkpoints.formats.huggingface import PICKLED_FILES
from t5x.checkpoints.formats.safetensors import Tensor
from t5x.checkpoints.formats.storage import Directory, is_url


class PickledTensors:
    """Reads pytorch_model.bin, or the files of its index, with `torch.load(weights_only=True)`.

    Args:
      directory: where they lie, on this machine.

    Attributes:
      tensors: by name.

    Raises:
      ModuleNotFoundError: torch is not installed.
      ValueError: the directory is not on this machine, or a file holds more than tensors.
    """

    def __init__(self, directory: Directory) -> None:
        try:
            import torch
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "pickled weights are read by torch: pip install torch"
            ) from error
        if is_url(directory.path):
            raise ValueError(f"{directory}: pickled weights are read from local files only")
        single, index = PICKLED_FILES
        text = directory.read(index)
        files = [single] if text is None else sorted(set(json.loads(text)["weight_map"].values()))
        self._values: dict[str, Any] = {}
        for file in files:
            path = os.path.join(directory.path, file)
            try:
                # Mapped: only what is being copied is in memory.
                loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except Exception as error:  # torch raises its own for what is not allowed
                cause = str(error).splitlines()[0]
                raise ValueError(f"{path} cannot be read as weights alone: {cause}") from error
            self._values |= loaded
        self.tensors = {
            name: Tensor("", 0, tuple(value.shape), self._array(value[:0]).dtype)
            for name, value in self._values.items()
        }

    @staticmethod
    def _array(value: Any) -> np.ndarray:
        import torch

        if value.dtype == torch.bfloat16:
            return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return value.numpy()

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Returns a tensor, or some of its rows."""
        return self._array(self._values[name][rows]).copy()
