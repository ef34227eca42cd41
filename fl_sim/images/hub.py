"""The Hugging Face hub: which names are ids on it, and what to do where it does not answer."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

_HUB_ID = re.compile(r"(hf://|buckets/).+|\w[\w.-]*/[\w.-]+")


def is_hub_id(name: str) -> bool:
    """Whether a name may be an id on the hub: ``namespace/name``, or what ``datasets`` takes with a prefix.

    >>> is_hub_id("uoft-cs/cifar100"), is_hub_id("digit"), is_hub_id("./photos")
    (True, False, False)
    """
    return _HUB_ID.fullmatch(name) is not None


@contextmanager
def cached_if_unreachable() -> Iterator[None]:
    """Where the hub does not answer, let ``datasets`` look into the local cache alone meanwhile.

    It does so by itself only after six attempts, 23 s of waiting between them.
    """
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or not _answers(datasets.config.HF_ENDPOINT)
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _answers(endpoint: str) -> bool:
    """Whether one request is answered within HF_HUB_ETAG_TIMEOUT seconds, and not by a gateway's error."""
    from huggingface_hub import constants, get_session

    try:
        status: int = get_session().head(endpoint, timeout=constants.HF_HUB_ETAG_TIMEOUT).status_code
    except Exception:  # the HTTP library's errors: which library that is depends on the version
        return False
    return status < 500
