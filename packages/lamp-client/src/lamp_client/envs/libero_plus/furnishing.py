"""Scenes and objects of LIBERO-Plus' asset archive, checked, and made known to LIBERO's own library."""

from __future__ import annotations

import copy
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.parsers import expat

from lamp_client.envs.bddl import inside
from lamp_client.envs.libero_plus.literals import PlusObject, PlusScene
from lamp_client.errors import InvalidValueError

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
class Furnishing:
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
        for made in self.objects:
            path = check_model(self.assets, made.file, standard_assets)
            OBJECTS_DICT.setdefault(made.category, _object_class(made, path))
        if self.scene is None:
            return {}
        scene_file = check_model(self.assets, self.scene.scene, standard_assets)
        for file in self.scene.files[1:]:
            _check_named(inside(self.assets, file, self.assets, standard_assets))
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
    _check_named(path, _MAX_MODEL_BYTES)
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
                    _check_named(inside(path.parent, value, assets, *also))
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


def _check_named(path: Path, most: int = _MAX_FILE_BYTES) -> None:
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


def _object_class(made: PlusObject, path: Path) -> type:
    """An object's class, as LIBERO's library makes its own."""
    import xml.etree.ElementTree as ElementTree

    from robosuite.models.objects import MujocoXMLObject

    class Added(MujocoXMLObject):
        def __init__(self, name: str = made.category, obj_name: str = made.category) -> None:
            joints: Any = [{"type": "free", "damping": "0.0005"}]
            super().__init__(str(path), name=name, joints=joints, obj_type="all", duplicate_collision_geoms=False)
            self.category_name = made.category
            self.object_properties = {"vis_site_names": {}}
            self.rotation = dict(made.rotation)
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

    return Added
