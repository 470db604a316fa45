"""The one door to NVIDIA's management library, narrow enough that a recording can stand in for it."""

from __future__ import annotations

import ctypes
from typing import Any, Protocol


class NvmlRefused(Exception):
    """A call the library did not answer. `code` is NVML's return value (3 is NOT_SUPPORTED)."""

    def __init__(self, function: str, code: int, text: str) -> None:
        super().__init__(f"{function}: {text}")
        self.function, self.code, self.text = function, code, text


# nvml.h, nvmlReturn_t
NOT_SUPPORTED = 3
DRIVER_NOT_LOADED = 9
LIBRARY_NOT_FOUND = 12
FUNCTION_NOT_FOUND = 13
LIB_RM_VERSION_MISMATCH = 18
UNKNOWN = 999


class Nvml(Protocol):
    """NVML by function name. Structures come back as dictionaries, lists of them as lists; handles are opaque."""

    def query(self, function: str, *args: object) -> Any:
        """The answer of one NVML function; raises NvmlRefused."""


class Pynvml:
    """The real library, through pynvml (distribution nvidia-ml-py). Imported and initialised on the first query."""

    def __init__(self) -> None:
        self._module: Any = None

    def query(self, function: str, *args: object) -> Any:
        module = self._started()
        try:
            return _plain(getattr(module, function)(*args))
        except module.NVMLError as error:
            raise NvmlRefused(function, int(error.value), str(error)) from None
        except AttributeError as error:
            raise NvmlRefused(function, FUNCTION_NOT_FOUND, str(error)) from None

    def _started(self) -> Any:
        if self._module is None:
            try:
                import pynvml
            except ImportError as error:
                raise NvmlRefused("import pynvml", LIBRARY_NOT_FOUND, str(error)) from None
            try:
                pynvml.nvmlInit()
            except pynvml.NVMLError as error:
                raise NvmlRefused("nvmlInit", int(error.value), str(error)) from None
            self._module = pynvml
        return self._module


def _plain(value: Any) -> Any:
    """NVML's structures as dictionaries, its byte strings as text; everything else (handles too) as it is."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, ctypes.Structure):
        names = [field[0] for field in value._fields_]
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, (list, tuple, ctypes.Array)):
        return [_plain(item) for item in value]
    if type(value).__name__ == "nvmlFriendlyObject":
        return {name: _plain(item) for name, item in vars(value).items()}
    return value
