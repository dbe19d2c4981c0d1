"""Constructor arguments of data modules, declared by what depends on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

Names = tuple[str, ...]


class DeclaredArguments:
    """Base of the data modules, which declare their constructor arguments in class attributes.

    Every class declares its own arguments; those of its base classes are added.

    Attributes:
        paths: arguments that are paths. The signature of the packed store covers the content of these files, so that
            folders may move and paths may be relative or absolute.
        paths_or_names: those of ``paths`` that may also be a name instead of a path.
        folders: those of ``paths`` that must be existing folders where they are given.
        read_time: arguments that apply when batches are read, not when the store is packed.
        resources: arguments that results do not depend on, such as where arrays reside.
        later: arguments that older packed stores do not know, and that leave them valid while they are None.
    """

    paths: ClassVar[Names] = ()
    paths_or_names: ClassVar[Names] = ()
    folders: ClassVar[Names] = ()
    read_time: ClassVar[Names] = ()
    resources: ClassVar[Names] = ()
    later: ClassVar[Names] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for declared in ("paths", "paths_or_names", "folders", "read_time", "resources", "later"):
            merged = [name for base in reversed(cls.__mro__) for name in vars(base).get(declared, ())]
            setattr(cls, declared, tuple(dict.fromkeys(merged)))

    @classmethod
    def packing_arguments(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments on which the packed store depends, with absolute paths."""
        packing = {name: value for name, value in arguments.items() if name not in cls.read_time}
        for name in cls.later:
            if packing.get(name) is None:
                packing.pop(name, None)
        for name in cls.paths:
            if packing.get(name) and (name not in cls.paths_or_names or Path(str(packing[name])).exists()):
                packing[name] = str(Path(str(packing[name])).resolve())
        return packing
