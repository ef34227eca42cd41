from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from attacks.attack import AttackError
from attacks.model_inversion.reconstructions_file import load_reconstructions, save_reconstructions
from attacks.model_inversion.target import Target
from tests.attacks.model_inversion.conftest import diff_mi


def test_what_is_saved_is_read_back(tmp_path: Path, target: Target) -> None:
    found = diff_mi(variant="public-images", classes=(2, 0)).invert(target)
    save_reconstructions(tmp_path / "a.safetensors", found)
    one, other = asdict(load_reconstructions(tmp_path / "a.safetensors")), asdict(found)
    for name in ("images", "classes"):
        assert torch.equal(one.pop(name), other.pop(name))
    assert one == other


def test_what_is_no_such_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_text("hello")
    for name in ("a.safetensors", "gone.safetensors"):
        with pytest.raises(AttackError, match="not readable as the result of a model inversion"):
            load_reconstructions(tmp_path / name)
