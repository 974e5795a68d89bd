"""Names of libraries that are not part of their documented interface, and whether they are still there."""

import importlib
import inspect
from dataclasses import dataclass
from functools import reduce
from typing import Any


@dataclass(frozen=True)
class PrivateInterface:
    """Something that Ingot uses of a library and that a new version may change without notice.

    Attributes:
        module: the module that has it.
        name: its name in the module, with dots for attributes of classes.
        why: what Ingot needs it for, and why nothing public does the same.
        parameters: those that Ingot relies on, by position or by name. Empty: it is not called, or Python cannot read
            its signature.
    """

    module: str
    name: str
    why: str
    parameters: tuple[str, ...] = ()

    def problem(self) -> str:
        """What is different from the version that Ingot was written for; empty if nothing is."""
        try:
            found: Any = reduce(getattr, self.name.split("."), importlib.import_module(self.module))
        except (ImportError, AttributeError) as error:
            return f"{self.module}.{self.name} is gone ({error}). Ingot uses it so: {self.why}"
        if not self.parameters:
            return ""
        known = list(inspect.signature(found).parameters)
        missing = [name for name in self.parameters if name not in known]
        if missing:
            return (
                f"{self.module}.{self.name} has no parameter {', '.join(missing)} (it has {', '.join(known)}). "
                f"Ingot uses it so: {self.why}"
            )
        return ""
