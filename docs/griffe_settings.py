"""Shows the API's reader the constructors of settings, which a decorator of the library writes."""

from typing import Any

import griffe

SETTINGS = "bilevel._describe.settings"


class _Dataclass(griffe.ExprName):
    canonical_path = "dataclasses.dataclass"


class Settings(griffe.Extension):
    """Classes under `@settings` are dataclasses, with a signature to show."""

    def on_class_instance(self, *, cls: griffe.Class, **_: Any) -> None:
        """Called by Griffe as it meets a class."""
        for decorator in cls.decorators:
            if decorator.callable_path == SETTINGS:
                decorator.value = _Dataclass("dataclass")
