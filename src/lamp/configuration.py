"""Configurations to JSON and back: frozen dataclasses, nested, and unions of them told apart by their type's name.

Every dataclass is written as an object with its type's name under ``"type"`` and one entry a field. Reading is strict:
an unknown key, a missing key or a value of the wrong type is a `ConfigError` that says where it is and what was
expected.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import types
import typing
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, overload

from lamp.errors import ConfigError, unknown

T = TypeVar("T")
TAG = "type"


@cache
def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}
    if TAG in fields:
        raise TypeError(f"{cls.__name__} has a field named {TAG!r}, which is where the type's name is written")
    return fields


def to_json(config: Any) -> Any:
    """Turns a configuration into plain JSON values; `from_json` is the exact inverse.

    Raises:
        ConfigError: A value has no JSON form, such as a function or a non-finite number.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        cls = type(config)
        return {TAG: cls.__name__, **{name: to_json(getattr(config, name)) for name in _hints(cls)}}
    match config:
        case enum.Enum():
            return config.name
        case None | bool() | int() | str():
            return config
        case float():
            if not math.isfinite(config):
                raise ConfigError(f"{config} cannot be written in a configuration; use a finite number or None")
            return config
        case Path():
            return str(config)
        case tuple() | list():
            return [to_json(item) for item in config]
        case dict():
            return {str(key): to_json(item) for key, item in config.items()}
    raise ConfigError(
        f"cannot write a value of type {type(config).__name__} in a configuration; "
        "use dataclasses, tuples, dicts, paths, strings, numbers, booleans or None"
    )


@overload
def from_json(cls: type[T], obj: Any, *, where: str = ...) -> T: ...
@overload
def from_json(cls: Any, obj: Any, *, where: str = ...) -> Any: ...
def from_json(cls: Any, obj: Any, *, where: str = "configuration") -> Any:
    """Builds a value of type `cls` from plain JSON values; a field left out takes its default.

    Args:
        cls: A dataclass, or any annotation built from them: unions, tuples, dicts, literals, enums.
        obj: What `to_json` returned, or the same written by hand. The type's name may be left out where only one fits.
        where: Where the values come from, for errors.

    Raises:
        ConfigError: A key is unknown or missing, or a value does not fit its type.
    """
    return _read(cls, obj, where)


def _name(annotation: Any) -> str:
    return getattr(annotation, "__name__", None) or str(annotation).replace("typing.", "")


def _expected(annotation: Any, obj: Any, where: str) -> ConfigError:
    return ConfigError(f"{where}: {obj!r} is not what is expected here, {_name(annotation)}")


def _read(annotation: Any, obj: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _read(arguments[0], obj, where)
    if origin in (typing.Union, types.UnionType):
        return _read_union(arguments, obj, where)
    if origin is typing.Literal:
        if any(type(obj) is type(choice) and obj == choice for choice in arguments):
            return obj
        raise unknown(f"value for {where}", obj, arguments)
    if origin is not None:
        return _read_collection(annotation, origin, arguments, obj, where)
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return _read_dataclass((annotation,), obj, where)
    return _read_plain(annotation, obj, where)


def _read_plain(annotation: Any, obj: Any, where: str) -> Any:
    if annotation is Any or annotation is object:
        return obj
    if annotation is None or annotation is types.NoneType:
        if obj is None:
            return None
        raise _expected(None, obj, where)
    if annotation is Path and isinstance(obj, str):
        return Path(obj)
    if annotation is float and isinstance(obj, int | float) and not isinstance(obj, bool):
        return float(obj)
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        if isinstance(obj, str) and obj in annotation.__members__:
            return annotation[obj]
        raise unknown(f"value for {where}", obj, annotation.__members__)
    if annotation in (bool, int, str, dict, list) and type(obj) is annotation:
        return obj
    raise _expected(annotation, obj, where)


def _read_collection(annotation: Any, origin: Any, arguments: tuple[Any, ...], obj: Any, where: str) -> Any:
    if origin is tuple and isinstance(obj, list | tuple):
        if arguments[-1:] == (Ellipsis,):
            return tuple(_read_items((arguments[0],) * len(obj), obj, where))
        if len(arguments) == len(obj):
            return tuple(_read_items(arguments, obj, where))
    if origin is list and isinstance(obj, list | tuple):
        return list(_read_items(arguments * len(obj), obj, where))
    if isinstance(origin, type) and issubclass(dict, origin) and isinstance(obj, dict):
        return {key: _read(arguments[1], item, f"{where}.{key}") for key, item in obj.items()}
    raise ConfigError(f"{where}: {obj!r} is not what is expected here, {str(annotation).replace('typing.', '')}")


def _read_items(annotations: Iterable[Any], items: Iterable[Any], where: str) -> Iterable[Any]:
    pairs = zip(annotations, items, strict=True)
    return (_read(annotation, item, f"{where}[{index}]") for index, (annotation, item) in enumerate(pairs))


def _read_union(members: tuple[Any, ...], obj: Any, where: str) -> Any:
    if obj is None and types.NoneType in members:
        return None
    classes = tuple(member for member in members if dataclasses.is_dataclass(member))
    if classes and isinstance(obj, dict):
        return _read_dataclass(classes, obj, where)
    others = [member for member in members if member not in classes and member is not types.NoneType]
    if len(others) == 1 and not classes:
        return _read(others[0], obj, where)
    for member in others:
        try:
            return _read(member, obj, where)
        except ConfigError:
            continue
    raise ConfigError(f"{where}: {obj!r} is not what is expected here, {' or '.join(map(_name, members))}")


def _read_dataclass(classes: tuple[Any, ...], obj: Any, where: str) -> Any:
    if not isinstance(obj, dict):
        raise ConfigError(f"{where}: {obj!r} is not what is expected here, {' or '.join(map(_name, classes))}")
    by_name = {cls.__name__: cls for cls in classes}
    values = dict(obj)
    tag = values.pop(TAG, None)
    if tag is None and len(classes) > 1:
        raise ConfigError(f"{where}: {TAG!r} is missing; expected one of {', '.join(by_name)}")
    if tag is not None and tag not in tuple(by_name):  # not in the dict: it may be a list
        raise unknown(f"{where} type", tag, by_name)
    cls = next(iter(classes)) if tag is None else by_name[tag]
    hints = _hints(cls)
    for key in values:
        if key not in hints:
            raise unknown(f"key in {where} ({cls.__name__})", key, hints)
    required = {
        field.name
        for field in dataclasses.fields(cls)
        if field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    missing = sorted(required - values.keys())
    if missing:
        raise ConfigError(f"{where} ({cls.__name__}): missing {', '.join(missing)}")
    return cls(**{key: _read(hints[key], value, f"{where}.{key}") for key, value in values.items()})
