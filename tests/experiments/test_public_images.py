import re

import pytest
import torch

from experiments.public_images import check_disjoint, public_images
from fl_sim.config import DataSettings, SettingsError


def images(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_a_private_image_among_the_public_ones_is_one_line() -> None:
    private = images(5, 0)
    check_disjoint(images(7, 1), private)
    with pytest.raises(SettingsError, match="public images: 2 of 9 are private images as well"):
        check_disjoint(torch.cat([images(7, 1), private[[1, 3]]]), private)


@pytest.mark.parametrize(("name", "hint"), [("digit", "; did you mean 'digits'?"), ("some/digits", "")])
def test_a_mistyped_name_of_public_images_is_named_under_its_own_key(
    name: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(SettingsError, match=rf"^data\.public\.name = '{name}': .*{re.escape(hint)}$"):
        public_images(DataSettings.model_validate({"public": {"name": name}}), 1)
