"""From the settings to the images of the federation."""

from functools import cache

from fl_sim.config import DataSettings
from fl_sim.images.bundled import list_bundled
from fl_sim.images.dataset import list_dataset
from fl_sim.images.folder import list_folder
from fl_sim.images.image_set import ImageSet
from fl_sim.images.small_pictures import SMALL_PICTURES, list_small_pictures


@cache
def list_images(settings: DataSettings) -> ImageSet:
    """All images of the federation, in a fixed order; listed once per process, and none of them decoded.

    Raises:
        SettingsError: if a name is unknown, or a folder or dataset cannot be read.
    """
    if settings.name == "bundled":
        return list_bundled(settings)
    if settings.name in SMALL_PICTURES:
        return list_small_pictures(settings)
    return list_folder(settings) if settings.name == "folder" else list_dataset(settings)
