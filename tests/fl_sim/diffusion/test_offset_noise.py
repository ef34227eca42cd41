import torch

from fl_sim.diffusion import add_offset, whiten


def test_the_offset_moves_whole_channels() -> None:
    noise = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    offsets = (add_offset(noise, 0.1, torch.Generator().manual_seed(1)) - noise).flatten(2)
    torch.testing.assert_close(offsets, offsets[..., :1].expand_as(offsets))
    assert offsets[..., 0].unique().numel() == 12
    assert 0.05 < float(offsets[..., 0].std()) < 0.2


def test_whitened_offset_noise_is_standard_normal() -> None:
    offset, pixels = 0.5, 6
    covariance = torch.eye(pixels) + offset**2
    white = whiten(torch.eye(pixels).reshape(pixels, 1, 2, 3), offset).reshape(pixels, pixels)  # rows of the map
    torch.testing.assert_close(white @ covariance @ white.T, torch.eye(pixels))


def test_without_an_offset_nothing_is_drawn_and_nothing_changes() -> None:
    noise, generator = torch.randn(2, 3, 4, 4), torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert add_offset(noise, 0.0, generator) is noise
    assert whiten(noise, 0.0) is noise
    assert torch.equal(generator.get_state(), before)
