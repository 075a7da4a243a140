"""What packages that we use do unasked, and the variables that forbid it: look-ups, reports, files in the home folder.

`configs/__init__.py` calls :func:`forbid`, and every package of this program imports `configs` before anything else. So
it holds before those packages are imported: in the driver, in Ray's workers, in every rank of torchrun, and in a program
that imports ours. A variable that the user has set stays as it is.
"""

from __future__ import annotations

import contextlib
import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from configs.errors import EchoForgeError
from configs.runtime import scratch

REPORTS = {
    # From 1.29 on onnxruntime's Linux builds look up mobile.events.data.microsoft.com for every session, leave a device id
    # and a database in ~/.cache/Microsoft and `.ses` in the temporary folder. `disable_telemetry_events` comes too late:
    # the import has done the half of it.
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",  # also read by transformers and diffusers; downloads that are asked for still work
}
CACHES = {
    # Both would otherwise lie under a name that anybody can take, and hold code that is run; or in the home folder.
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",  # Triton's is in it
    "MPLCONFIGDIR": "matplotlib",
}
LIBRARIES = "LD_LIBRARY_PATH"
"""cv2 puts its own folder and a colon before it. Where it was empty it then ends in a colon, which means the working
directory (ld.so(8)): every program started afterwards, Ray's among them, would load libraries from there."""


def forbid() -> None:
    """Set the variables, unless the user has."""
    for name, value in REPORTS.items():
        _default(name, value)
    for name, folder in CACHES.items():
        try:
            _default(name, str(scratch.kept(folder)))
        except EchoForgeError:  # whatever needs a temporary folder will say so
            break
    if not any(isinstance(finder, _TorchElsewhere) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TorchElsewhere())
    places = [place for place in os.environ.get(LIBRARIES, "").split(os.pathsep) if place]
    os.environ[LIBRARIES] = os.pathsep.join(places or [os.path.dirname(__file__)])  # noqa: PTH120 - no library is there


class _TorchElsewhere:
    """Import finder: torch is imported from the root folder.

    NVIDIA's libcusparseLt.so.0, which torch loads, has an empty entry in its RUNPATH: it would load, and so run, a
    ``libcuda.so.1`` of the working directory.
    """

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The spec of torch as others find it, with another way to load it."""
        if name != "torch" or path is not None:
            return None
        specs = (f.find_spec(name, path, target) for f in sys.meta_path if f is not self)  # type: ignore[arg-type]
        spec = next(filter(None, specs), None)
        if spec and spec.loader:
            load = spec.loader.exec_module

            def elsewhere(module: ModuleType) -> None:
                with contextlib.chdir("/"):
                    load(module)

            spec.loader.exec_module = elsewhere  # type: ignore[method-assign]
        return spec


def _default(name: str, value: str) -> None:
    if not os.environ.get(name):
        os.environ[name] = value
