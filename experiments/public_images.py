"""Public images, which no client holds, beside the private ones."""

from hashlib import sha256

from torch import Tensor

from fl_sim.config import SettingsError


def check_disjoint(public: Tensor, private: Tensor) -> None:
    """Check that no image of ``public`` [M,C,H,W] is, pixel by pixel, one of ``private`` [N,C,H,W].

    Raises:
        SettingsError: if one is.
    """
    held = {_hash(image) for image in private}
    shared = sum(_hash(image) in held for image in public)
    if shared:
        raise SettingsError(
            f"public images: {shared} of {len(public)} are private images as well; allowed: images that no client holds"
        )


def _hash(image: Tensor) -> bytes:
    return sha256(image.contiguous().numpy().tobytes()).digest()
