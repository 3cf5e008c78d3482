"""What LIBERO-Plus writes as Python code but is data: names, scenes, styles, objects. The code is parsed, never run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lamp_client.envs.bddl import arithmetic
from lamp_client.errors import InvalidValueError, UnknownNameError

_MAX_BYTES = 16 << 20
"""The benchmark's longest Python file has 1.6 MB."""
_NO_LITERAL = (SyntaxError, ValueError, TypeError, LookupError, RecursionError, MemoryError)
"""What parsing Python, or reading a literal, raises on anything else."""


def read_text(path: Path) -> str:
    """The text of one of the copy's files.

    Raises:
        InvalidValueError: It is missing, no text, or beyond all reason in size.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)
        if len(raw) > _MAX_BYTES:
            raise InvalidValueError(f"{path} has over {_MAX_BYTES:,} bytes; the benchmark has no such file.")
        return raw.decode("utf-8")
    except OSError as error:
        raise InvalidValueError(
            f"{path} cannot be read ({error.strerror}).", hint="The copy of LIBERO-Plus is incomplete."
        ) from None
    except UnicodeDecodeError as error:
        raise InvalidValueError(f"{path} is no text in UTF-8 ({error.reason}).") from None


def parse(text: str, path: Path) -> ast.Module:
    """Parses Python without running it.

    Raises:
        InvalidValueError: It is no Python.
    """
    try:
        return ast.parse(text)
    except _NO_LITERAL as error:
        raise InvalidValueError(f"{path} is no Python ({type(error).__name__}: {error}).") from None


def literal(node: ast.expr | str, path: Path) -> Any:
    """The value of a Python literal.

    Raises:
        InvalidValueError: It is none.
    """
    try:
        return ast.literal_eval(node)
    except _NO_LITERAL as error:
        raise InvalidValueError(f"{path} holds no plain values where it should ({error}).") from None


def assigned(path: Path, name: str) -> Any:
    """The literal that a Python file assigns to a name; None where it assigns none."""
    for node in parse(read_text(path), path).body:
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
            return literal(node.value, path)
    return None


@dataclass(frozen=True, kw_only=True)
class PlusScene:
    """How a scene differs from the standard one of its kind."""

    problem: str
    """Name of the problem class, as task files ask for it."""
    standard: str
    """Name of LIBERO's own class that it builds on."""
    scene: str
    """The scene's file, in the assets."""
    styles: dict[str, str]
    """`floor_style` and `wall_style`."""
    textures: dict[str, dict[str, str]]
    """`floor` and `wall` -> style -> file name of those styles that LIBERO itself may not know."""

    @property
    def files(self) -> tuple[str, ...]:
        """What has to be in the assets, relative to them."""
        used = (self.textures[kind].get(self.styles.get(f"{kind}_style", "")) for kind in ("floor", "wall"))
        return (self.scene, *(f"textures/{name}" for name in used if name))


@dataclass(frozen=True, kw_only=True)
class PlusObject:
    """An object that LIBERO does not have."""

    category: str
    """As task files name it."""
    file: str
    """Its description, relative to the assets."""
    rotation: dict[str, tuple[float, float]]
    """Axis -> range of the angle that it is placed with [rad]; only used before the stored state is set."""


class Scenery:
    """The scenes and objects that a copy of LIBERO-Plus defines.

    Args:
        envs: Its folder `envs`.
    """

    def __init__(self, envs: Path) -> None:
        self._envs = envs
        self._modules: dict[Path, Module] = {}
        self._scenes: dict[str, PlusScene] = {}

    def scene(self, problem: str) -> PlusScene:
        """The scene of a problem class.

        Raises:
            UnknownNameError: The copy defines no such class.
        """
        if problem not in self._scenes:
            self._scenes[problem] = self._read_scene(problem)
        return self._scenes[problem]

    def _read_scene(self, problem: str) -> PlusScene:
        modules = [self._module(path) for path in sorted((self._envs / "problems").glob("libero_*.py"))]
        module = next((module for module in modules if problem.lower() in module.lowered), None)
        if module is None:
            raise UnknownNameError("problem of LIBERO-Plus", problem, ())
        node = module.parsed(module.lowered[problem.lower()])
        standard = next((base.id for base in node.bases if isinstance(base, ast.Name)), "")
        inherited = dict(_strings(module.parsed(standard))) if standard.lower() in module.lowered else {}
        strings = {**inherited, **dict(_strings(node))}
        absent = {"scene_xml", "floor_style", "wall_style"} - strings.keys()
        if absent:
            raise InvalidValueError(f"the problem {problem} of LIBERO-Plus names no {', '.join(sorted(absent))}.")
        return PlusScene(
            problem=node.name,
            standard=standard,
            scene=strings["scene_xml"],
            styles={key: strings[key] for key in ("floor_style", "wall_style")},
            textures=self._textures,
        )

    @cached_property
    def objects(self) -> dict[str, PlusObject]:
        """Category -> object, of those that LIBERO does not have."""
        path = self._envs / "objects" / "custom_objects.py"
        found = {}
        module = self._module(path) if path.is_file() else None
        for name in module.spans if module is not None else ():
            assert module is not None
            node = module.parsed(name)
            texts = [str(part.value) for part in ast.walk(node) if isinstance(part, ast.Constant)]
            file = next((text for text in texts if text.startswith("assets/") and text.endswith(".xml")), None)
            if file is not None:
                category = registered_name(name)
                found[category] = PlusObject(
                    category=category, file=file.removeprefix("assets/"), rotation=_rotation(node)
                )
        return found

    @cached_property
    def _textures(self) -> dict[str, dict[str, str]]:
        path = self._envs / "arenas" / "style.py"
        found = {kind: assigned(path, f"{kind.upper()}_STYLE") or {} for kind in ("floor", "wall")}
        for styles in found.values():
            if not isinstance(styles, dict) or not all(isinstance(v, str) for pair in styles.items() for v in pair):
                raise InvalidValueError(f"{path} holds no table of styles and files.")
        return found

    def _module(self, path: Path) -> Module:
        if path not in self._modules:
            self._modules[path] = Module(path)
        return self._modules[path]


class Module:
    """A Python file whose classes are parsed one by one: some have tens of thousands of lines."""

    def __init__(self, path: Path) -> None:
        self._path, self._text = path, read_text(path)
        starts = [(found[1], found.start()) for found in re.finditer(r"^class\s+(\w+)", self._text, flags=re.MULTILINE)]
        ends = [found.start() for found in re.finditer(r"^[^\s#)\]}]", self._text, flags=re.MULTILINE)]
        following = dict(zip(ends, [*ends[1:], len(self._text)], strict=True))
        self.spans = {name: (start, following[start]) for name, start in starts}
        """Class -> where its text begins and ends."""
        self.lowered = {name.lower(): name for name in self.spans}
        """Names of classes in lower case, as LIBERO looks them up, to the names as written."""

    def parsed(self, name: str) -> ast.ClassDef:
        """The class, parsed."""
        start, end = self.spans[name]
        node = next(iter(parse(self._text[start:end], self._path).body), None)
        if not isinstance(node, ast.ClassDef):
            raise InvalidValueError(f"{self._path} defines no class {name}.")
        return node


def registered_name(cls: str) -> str:
    """The category under which LIBERO registers an object's class: `BoxOfShampoo_1` is `box_of_shampoo__1`."""
    return "_".join(re.sub(r"([A-Z0-9])", r" \1", cls).split()).lower()


def _strings(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """The entries of all dictionaries in a class whose key and value are plain strings."""
    for part in ast.walk(node):
        if isinstance(part, ast.Dict):
            for key, value in zip(part.keys, part.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield str(key.value), value.value


def _rotation(node: ast.ClassDef) -> dict[str, tuple[float, float]]:
    """The dictionary assigned to `self.rotation`, whose values are pairs of multiples of pi."""
    for part in ast.walk(node):
        if isinstance(part, ast.Assign) and isinstance(part.value, ast.Dict):
            target = part.targets[0]
            if isinstance(target, ast.Attribute) and target.attr == "rotation":
                keys = [str(key.value) for key in part.value.keys if isinstance(key, ast.Constant)]
                return dict(zip(keys, map(_pair, part.value.values), strict=True))
    return {}


def _pair(node: ast.expr) -> tuple[float, float]:
    if not isinstance(node, ast.Tuple) or len(node.elts) != 2:
        raise InvalidValueError(f"{ast.unparse(node)} is no pair of angles.")
    low, high = (_number(part) for part in node.elts)
    return low, high


def _number(node: ast.expr) -> float:
    try:
        return arithmetic(node)
    except (ValueError, RecursionError) as error:
        raise InvalidValueError(f"{ast.unparse(node)} is no angle ({error}).") from None
