"""Scenes and objects of LIBERO-Plus: its Python files, parsed and never run, and the files of its asset archive,
checked and made known to LIBERO's own library.
"""

from __future__ import annotations

import ast
import copy
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.parsers import expat

from lamp_client.envs.bddl import arithmetic, inside
from lamp_client.errors import InvalidValueError, UnknownNameError

_MAX_PYTHON_BYTES = 16 << 20
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
            raw = stream.read(_MAX_PYTHON_BYTES + 1)
        if len(raw) > _MAX_PYTHON_BYTES:
            raise InvalidValueError(f"{path} has over {_MAX_PYTHON_BYTES:,} bytes; the benchmark has no such file.")
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
    """The scenes and objects that a copy of LIBERO-Plus defines in its folder `envs`."""

    def __init__(self, envs: Path) -> None:
        self._envs = envs
        self._modules: dict[Path, PythonModule] = {}
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
        if not path.is_file():
            return {}
        by_category, module = {}, self._module(path)
        for name in module.spans:
            node = module.parsed(name)
            texts = [str(part.value) for part in ast.walk(node) if isinstance(part, ast.Constant)]
            file = next((text for text in texts if text.startswith("assets/") and text.endswith(".xml")), None)
            if file is not None:
                category = registered_name(name)
                by_category[category] = PlusObject(
                    category=category, file=file.removeprefix("assets/"), rotation=_rotation(node)
                )
        return by_category

    @cached_property
    def _textures(self) -> dict[str, dict[str, str]]:
        path = self._envs / "arenas" / "style.py"
        textures = {kind: assigned(path, f"{kind.upper()}_STYLE") or {} for kind in ("floor", "wall")}
        for styles in textures.values():
            if not isinstance(styles, dict) or not all(isinstance(v, str) for pair in styles.items() for v in pair):
                raise InvalidValueError(f"{path} holds no table of styles and files.")
        return textures

    def _module(self, path: Path) -> PythonModule:
        if path not in self._modules:
            self._modules[path] = PythonModule(path)
        return self._modules[path]


class PythonModule:
    """A Python file whose classes are parsed one by one: some have tens of thousands of lines."""

    def __init__(self, path: Path) -> None:
        self._path, self._text = path, read_text(path)
        starts = [(match[1], match.start()) for match in re.finditer(r"^class\s+(\w+)", self._text, flags=re.MULTILINE)]
        ends = [match.start() for match in re.finditer(r"^[^\s#)\]}]", self._text, flags=re.MULTILINE)]
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


# fmt: off
_ELEMENTS = frozenset((
    "mujoco", "compiler", "option", "flag", "size", "visual", "global", "quality", "headlight", "map", "scale", "rgba",
    "statistic", "default", "asset", "texture", "material", "mesh", "worldbody", "body", "inertial", "joint", "freejoint",
    "geom", "site", "camera", "light", "contact", "pair", "exclude", "equality", "connect", "weld", "tendon", "fixed",
    "spatial", "actuator", "motor", "position", "velocity", "general", "sensor", "force", "torque", "touch", "keyframe",
    "key", "custom", "numeric", "text",
))
# fmt: on
"""What a model may be made of. Left out is what brings in other files (include, model, attach, plugin, extension), or makes much
of little (composite, flexcomp, replicate)."""

_MAX_MODEL_BYTES = 16 << 20
_MAX_FILE_BYTES = 256 << 20
_MAX_PIXELS = 8192 * 8192
_MAX_DEPTH = 100


@dataclass(frozen=True, kw_only=True)
class PlusAssets:
    """What a task needs beyond LIBERO's own scenes and objects."""

    assets: Path
    """The unpacked archive."""
    scene: PlusScene | None = None
    objects: tuple[PlusObject, ...] = ()

    def register(self) -> dict[str, Any]:
        """Adds problem class, styles and objects to the library's tables, where absent; returns arguments for the problem.

        Raises:
            InvalidValueError: A file of the archive, or one that it names, holds or names what it may not.
        """
        from libero.libero import get_libero_path
        from libero.libero.envs.arenas import style
        from libero.libero.envs.base_object import OBJECTS_DICT
        from libero.libero.envs.bddl_base_domain import TASK_MAPPING
        from libero.libero.envs.regions import REGION_SAMPLERS

        standard_assets = Path(get_libero_path("assets"))
        for added in self.objects:
            path = check_model(self.assets, added.file, standard_assets)
            OBJECTS_DICT.setdefault(added.category, _make_object_class(added, path))
        if self.scene is None:
            return {}
        scene_file = check_model(self.assets, self.scene.scene, standard_assets)
        for file in self.scene.files[1:]:
            _check_file(inside(self.assets, file, self.assets, standard_assets))
        for kind, known in (("floor", style.FLOOR_STYLE), ("wall", style.WALL_STYLE)):
            for name, file in self.scene.textures[kind].items():
                known.setdefault(name, file)
        name, standard = self.scene.problem, TASK_MAPPING.get(self.scene.standard.lower())
        if standard is None:
            raise InvalidValueError(f"{name} builds on {self.scene.standard!r}, a problem that LIBERO does not have.")
        TASK_MAPPING.setdefault(name.lower(), type(name, (standard,), {}))
        REGION_SAMPLERS.setdefault(name.lower(), REGION_SAMPLERS[self.scene.standard.lower()])
        # The library joins this with its own assets' folder, which an absolute path overrides.
        return {"scene_xml": str(scene_file), "scene_properties": dict(self.scene.styles)}


def check_model(assets: Path, name: str, *also: Path) -> Path:
    """Holds a model's description (MJCF) to what it may be made of, before MuJoCo reads it.

    Args:
        assets: The archive, which its files have to lie in.
        name: The description, relative to the archive.
        also: Further folders that files may lie in.

    Returns:
        The description's path.

    Raises:
        InvalidValueError: An element that is not known to be harmless, a file outside the archive, a declaration of entities, or
            a size beyond all reason.
    """
    path = inside(assets, name, assets, *also)
    _check_file(path, _MAX_MODEL_BYTES)
    depth = 0

    def started(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if tag not in _ELEMENTS or depth > _MAX_DEPTH:
            raise InvalidValueError(f"{path} holds <{tag}>, which a scene or object may not.")
        for key, value in attributes.items():
            named = key.startswith("file") or (tag == "compiler" and key.endswith("dir"))
            try:
                if named and value:
                    # robosuite and MuJoCo take it as relative to the description.
                    _check_file(inside(path.parent, value, assets, *also))
            except InvalidValueError as error:
                raise InvalidValueError(f"{path}, <{tag} {key}=...>: {error.problem}", hint=error.hint) from None
            if tag == "texture" and key in ("width", "height") and not _is_small(value):
                raise InvalidValueError(f"{path}, <texture {key}=...>: {value[:20]!r} is no size of a texture.")

    def ended(tag: str) -> None:
        nonlocal depth
        depth -= 1

    def declared(*_: object) -> None:
        raise InvalidValueError(f"{path} declares a document type, which a scene or object may not.")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = started, ended
    parser.StartDoctypeDeclHandler = declared
    try:
        parser.Parse(path.read_bytes(), True)
    except expat.ExpatError as error:
        raise InvalidValueError(f"{path} is no XML ({error}).") from None
    except OSError as error:
        raise InvalidValueError(f"{path} cannot be read ({error.strerror}).") from None
    return path


def _check_file(path: Path, most: int = _MAX_FILE_BYTES) -> None:
    """Refuses files that would take all memory, or never end. Missing ones are MuJoCo's to name: not every one is used."""
    if path.is_dir() or not path.exists():
        return
    if not path.is_file():
        raise InvalidValueError(f"{path} is no ordinary file.")
    if path.stat().st_size > most:
        raise InvalidValueError(f"{path} has {path.stat().st_size:,} bytes; at most {most:,} are read.")
    with path.open("rb") as stream:
        head = stream.read(24)
    if head.startswith(b"\x89PNG") and len(head) == 24:
        width, height = struct.unpack(">II", head[16:])
        if width * height > _MAX_PIXELS:
            raise InvalidValueError(
                f"{path} is an image of {width} x {height} pixels; at most {_MAX_PIXELS:,} are read."
            )


def _is_small(value: str) -> bool:
    return value.strip().isascii() and value.strip().isdigit() and len(value.strip()) <= 5 and int(value) <= 16384


def _make_object_class(added: PlusObject, path: Path) -> type:
    """An object's class, as LIBERO's library makes its own."""
    import xml.etree.ElementTree as ElementTree

    from robosuite.models.objects import MujocoXMLObject

    class AddedObject(MujocoXMLObject):
        def __init__(self, name: str = added.category, obj_name: str = added.category) -> None:
            joints: Any = [{"type": "free", "damping": "0.0005"}]
            super().__init__(str(path), name=name, joints=joints, obj_type="all", duplicate_collision_geoms=False)
            self.category_name = added.category
            self.object_properties = {"vis_site_names": {}}
            self.rotation = dict(added.rotation)
            self.rotation_axis = None

        def _get_object_subtree(self) -> Any:
            # The archive has the object's body either inside another or at the top; robosuite knows the former.
            top = self.worldbody.find("./body[@name='object']")
            if top is not None and self.worldbody.find("./body/body[@name='object']") is None:
                holder = ElementTree.Element("body")
                self.worldbody.remove(top)
                self.worldbody.append(holder)
                holder.append(top)
                holder.extend(copy.deepcopy(site) for site in top.findall("site"))
            return super()._get_object_subtree()

    return AddedObject
