"""Is the device that a configuration names there?"""

from __future__ import annotations

from configs.errors import ConfigError


def usable(device: str, key: str, *also: str) -> None:
    """Refuse a GPU that this machine does not have, before anything is loaded onto it.

    Args:
        device: as torch names it: ``cpu``, ``cuda``, ``cuda:1``.
        key: the configuration key that names it.
        also: assignments that a machine without a GPU needs besides ``key=cpu``.

    Raises:
        ConfigError: torch sees no such GPU; the sentence says which keys to set.
    """
    if not device.startswith("cuda"):
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = int(device.partition(":")[2] or 0)
    if number >= count:
        settings = " ".join(f"--set {setting}" for setting in (f"{key}=cpu", *also))
        raise ConfigError(
            f"{key} is {device}, but torch sees {count or 'no'} GPU{'s' if count > 1 else ''} here; to compute on the "
            f"CPU instead: {settings}."
        )
