import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fl_sim.network import ConfigError, read_safetensors
from fl_sim.network.safetensors_file import MOST_TENSORS

MANY = {str(number): torch.empty(0) for number in range(MOST_TENSORS + 1)}


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("model", Path.mkdir, "it is a folder; allowed: a safetensors file"),
        ("model.safetensors", Path.touch, "it is empty"),
        ("model.bin", lambda path: torch.save({}, path), "it is a pickle, which is never opened"),
        ("model.ckpt", lambda path: path.write_bytes(b"\x80\x02}."), "it is a pickle, which is never opened"),
        ("model.safetensors", lambda path: os.mkfifo(path), "it is no regular file"),
        ("model.safetensors", lambda path: save_file(MANY, path), "it has 50001 tensors; allowed: 50000 at most"),
    ],
)
def test_what_is_no_safetensors_file_is_called_by_its_name(
    tmp_path: Path, name: str, make: Callable[[Path], Any], reason: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(ConfigError, match=reason) as refusal:
        read_safetensors(tmp_path / name)
    assert "\n" not in str(refusal.value)
