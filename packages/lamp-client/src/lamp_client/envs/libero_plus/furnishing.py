"""Scenes and objects of LIBERO-Plus' asset archive, made known to LIBERO's own library."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamp_client.envs.libero_plus.literals import PlusObject, PlusScene


@dataclass(frozen=True, kw_only=True)
class Furnishing:
    """What a task needs beyond LIBERO's own scenes and objects."""

    assets: Path
    """The unpacked archive."""
    scene: PlusScene | None = None
    objects: tuple[PlusObject, ...] = ()

    def register(self) -> dict[str, Any]:
        """Adds problem class, styles and objects to the library's tables, where absent; returns arguments for the problem."""
        from libero.libero.envs.arenas import style
        from libero.libero.envs.base_object import OBJECTS_DICT
        from libero.libero.envs.bddl_base_domain import TASK_MAPPING
        from libero.libero.envs.regions import REGION_SAMPLERS

        for made in self.objects:
            OBJECTS_DICT.setdefault(made.category, _object_class(made, self.assets / made.file))
        if self.scene is None:
            return {}
        for kind, known in (("floor", style.FLOOR_STYLE), ("wall", style.WALL_STYLE)):
            for name, file in self.scene.textures[kind].items():
                known.setdefault(name, file)
        name, standard = self.scene.problem, TASK_MAPPING[self.scene.standard.lower()]
        TASK_MAPPING.setdefault(name.lower(), type(name, (standard,), {}))
        REGION_SAMPLERS.setdefault(name.lower(), REGION_SAMPLERS[self.scene.standard.lower()])
        # The library joins this with its own assets' folder, which an absolute path overrides.
        return {"scene_xml": str(self.assets / self.scene.scene), "scene_properties": dict(self.scene.styles)}


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
