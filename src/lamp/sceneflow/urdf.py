"""A robot from its URDF: where each link is for given joint values, and how far points are from the links' surfaces.

Only what scene flow needs: the tree of joints (https://wiki.ros.org/urdf/XML/joint) and collision shapes, or visual ones where a
link has none. Meshes are STL or OBJ. Nothing that a URDF names is executed, and documents with entities are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Float, Float64
from scipy.spatial import KDTree

from lamp.errors import ConfigError, DataError, unknown

LARGEST_FILE = 1 << 26
"""A URDF or mesh of more bytes is refused."""
SPACING = 0.005
"""m: meshes are known by points of their surface about so far apart."""
MOVABLE = ("revolute", "continuous", "prismatic")


@dataclass(frozen=True, kw_only=True)
class Joint:
    """How one link hangs on another."""

    name: str
    kind: str
    parent: str
    child: str
    origin: Float64[np.ndarray, "4 4"]
    """``parent_from_joint`` at value zero."""
    axis: Float64[np.ndarray, "3"]
    mimic: tuple[str, float, float] | None = None
    """The joint that it follows, with multiplier and offset."""

    def motion(self, values: Float[np.ndarray, " n"]) -> Float64[np.ndarray, "n 4 4"]:
        """What its values [rad or m] do, in its own frame."""
        found = np.tile(np.eye(4), (len(values), 1, 1))
        if self.kind == "prismatic":
            found[:, :3, 3] = values[:, None] * self.axis
        elif self.kind != "fixed":  # Rodrigues' formula
            x, y, z = self.axis
            cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
            angle = np.asarray(values, np.float64)[:, None, None]
            found[:, :3, :3] = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)
        return found


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One surface of a link."""

    kind: str
    """box, sphere, cylinder or mesh."""
    link_from_shape: Float64[np.ndarray, "4 4"]
    size: Float64[np.ndarray, " s"]
    """Half sides; radius; radius and half length. [m]"""
    points: Float64[np.ndarray, "m 3"] | None = None
    """Of a mesh."""
    _tree: list[KDTree] = field(default_factory=list, repr=False, compare=False)

    def distance(self, points: Float[np.ndarray, "n 3"]) -> Float64[np.ndarray, " n"]:
        """Distance of points, in the link's frame, from the surface; negative inside, but of a mesh. [m]"""
        local = (points - self.link_from_shape[:3, 3]) @ self.link_from_shape[:3, :3]
        if self.points is not None:
            if not self._tree:
                self._tree.append(KDTree(self.points))
            return np.asarray(self._tree[0].query(local)[0])
        if self.kind == "sphere":
            return np.linalg.norm(local, axis=-1) - self.size[0]
        away = np.abs(local)
        if self.kind == "cylinder":
            away = np.stack([np.hypot(local[:, 0], local[:, 1]), away[:, 2]], axis=-1)
        away = away - self.size
        return np.linalg.norm(np.maximum(away, 0), axis=-1) + np.minimum(away.max(axis=-1), 0)


@dataclass(frozen=True, kw_only=True)
class Robot:
    """Links, joints and shapes of one robot."""

    name: str
    root: str
    joints: tuple[Joint, ...]
    """Each after the joint that its parent hangs on."""
    shapes: Mapping[str, tuple[Shape, ...]]
    """By link."""

    @classmethod
    def read(cls, path: Path) -> Robot:
        """Reads a URDF and the meshes that it names.

        Raises:
            DataError: The file or a mesh is missing or damaged, or it is no tree of joints that have one value.
        """
        root = _parsed(path)
        try:
            joints = [_joint(element) for element in root.findall("joint")]
            links = [element.attrib["name"] for element in root.findall("link")]
            shapes = {element.attrib["name"]: _shapes(element, path) for element in root.findall("link")}
        except (KeyError, ValueError, IndexError) as error:
            raise DataError(f"{path} is no URDF that can be read ({type(error).__name__}: {error})") from None
        tops = set(links) - {joint.child for joint in joints}
        strange = [name for joint in joints for name in (joint.parent, joint.child) if name not in links]
        if len(tops) != 1 or strange or len({joint.child for joint in joints}) != len(joints):
            raise DataError(
                f"{path} is no tree of links: {', '.join(strange[:1]) or f'{len(tops)} links hang on none'}; expected one "
                "link on which all others hang"
            )
        ordered, placed = list[Joint](), set(tops)
        while len(ordered) < len(joints):
            ready = [joint for joint in joints if joint.parent in placed and joint.child not in placed]
            if not ready:
                raise DataError(f"{path} is no tree of links: its joints go round in a circle")
            ordered += ready
            placed |= {joint.child for joint in ready}
        known = {joint.name for joint in joints if joint.kind in MOVABLE}
        for joint in joints:
            if joint.mimic is not None and joint.mimic[0] not in known:
                raise unknown(f"joint that {joint.name} of {path} mimics", joint.mimic[0], sorted(known))
        return cls(name=root.get("name", path.stem), root=tops.pop(), joints=tuple(ordered), shapes=shapes)

    @property
    def joint_names(self) -> tuple[str, ...]:
        """The joints that have a value of their own."""
        return tuple(joint.name for joint in self.joints if joint.kind in MOVABLE and joint.mimic is None)

    def poses(self, names: Sequence[str], values: Float[np.ndarray, "n j"]) -> dict[str, Float64[np.ndarray, "n 4 4"]]:
        """``root_from_link`` of every link.

        Args:
            names: Of the joints that the values are of; each that has a value of its own is needed.
            values: rad of turning joints, m of sliding ones.

        Raises:
            ConfigError: A joint is unknown, or has no value.
        """
        for name in names:
            if name not in self.joint_names:
                raise unknown(f"joint of the robot {self.name}", name, self.joint_names)
        if lacking := [name for name in self.joint_names if name not in names]:
            raise ConfigError(
                f"no values of {', '.join(lacking)} of the robot {self.name}; expected those of all its joints, "
                f"{', '.join(self.joint_names)}"
            )
        if values.shape[1] != len(names) or not np.isfinite(values).all():
            raise ConfigError(
                f"joint values of shape {values.shape} for {len(names)} joints; expected a finite value of each at every frame"
            )
        column = {name: np.asarray(values[:, at], np.float64) for at, name in enumerate(names)}
        found = {self.root: np.tile(np.eye(4), (len(values), 1, 1))}
        for joint in self.joints:
            if joint.mimic is not None:
                leader, factor, offset = joint.mimic
                own = factor * column[leader] + offset
            else:
                own = column.get(joint.name, np.zeros(len(values)))
            found[joint.child] = found[joint.parent] @ joint.origin @ joint.motion(own)
        return found

    def distances(self, link: str, points: Float[np.ndarray, "n 3"]) -> Float64[np.ndarray, " n"]:
        """How far points, in a link's frame, are from the nearest of its surfaces; infinite where it has none. [m]"""
        parts = [shape.distance(points) for shape in self.shapes.get(link, ())]
        return np.min(parts, axis=0) if parts else np.full(len(points), np.inf)


def _parsed(path: Path) -> ElementTree.Element:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise DataError(f"{path} has {path.stat().st_size:,} bytes; expected a URDF of at most {LARGEST_FILE:,}")
        text = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the robot's description {path} ({error.strerror}); expected a URDF") from None
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise DataError(f"{path} declares a document type or entities, which no URDF needs; expected none")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise DataError(f"{path} is no URDF ({error})") from None
    if root.tag != "robot":
        raise DataError(
            f"{path} begins with <{root.tag}>; expected the <robot> of a URDF (xacro files have to be expanded)"
        )
    return root


def _numbers(text: str | None, count: int, otherwise: Sequence[float]) -> Float64[np.ndarray, " c"]:
    values = np.array(otherwise if text is None else text.split(), dtype=np.float64)
    if len(values) != count or not np.isfinite(values).all():
        raise ValueError(f"{text!r} are not {count} numbers")
    return values


def origin(element: ElementTree.Element | None) -> Float64[np.ndarray, "4 4"]:
    """The pose that an <origin> gives: turned about the fixed axes x, y, z by roll, pitch, yaw, then moved."""
    found = np.eye(4)
    if element is not None:
        found[:3, 3] = _numbers(element.get("xyz"), 3, (0.0, 0.0, 0.0))
        (sr, sp, sy), (cr, cp, cy) = (
            turn(_numbers(element.get("rpy"), 3, (0.0, 0.0, 0.0))) for turn in (np.sin, np.cos)
        )
        found[:3, :3] = [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    return found


def _joint(element: ElementTree.Element) -> Joint:
    name, kind = element.attrib["name"], element.attrib["type"]
    if kind not in (*MOVABLE, "fixed"):
        raise ValueError(f"joint {name} is {kind}; expected {', '.join(MOVABLE)} or fixed")
    ends = [element.find(end) for end in ("parent", "child")]
    parent, child = ("" if end is None else end.attrib["link"] for end in ends)
    turning, follows = element.find("axis"), element.find("mimic")
    axis = _numbers(None if turning is None else turning.get("xyz"), 3, (1.0, 0.0, 0.0))
    if kind != "fixed":
        if not np.linalg.norm(axis) > 0:
            raise ValueError(f"joint {name} has the axis {axis}; expected a direction")
        axis = axis / np.linalg.norm(axis)
    mimic = None
    if follows is not None:
        mimic = (follows.attrib["joint"], float(follows.get("multiplier", 1)), float(follows.get("offset", 0)))
    return Joint(
        name=name, kind=kind, parent=parent, child=child, origin=origin(element.find("origin")), axis=axis, mimic=mimic
    )


def _shapes(link: ElementTree.Element, path: Path) -> tuple[Shape, ...]:
    found = []
    for element in link.findall("collision") or link.findall("visual"):
        geometry = element.find("geometry")
        pose = origin(element.find("origin"))
        for item in () if geometry is None else geometry:
            if item.tag == "box":
                size = _numbers(item.attrib["size"], 3, ()) / 2
            elif item.tag == "sphere":
                size = _numbers(item.attrib["radius"], 1, ())
            elif item.tag == "cylinder":
                radius, length = (_numbers(item.attrib[name], 1, ())[0] for name in ("radius", "length"))
                size = np.array([radius, length / 2])
            elif item.tag == "mesh":
                scale = _numbers(item.get("scale"), 3, (1.0, 1.0, 1.0))
                points = surface_points(_triangles(_mesh_file(item.attrib["filename"], path)) * scale)
                found.append(Shape(kind="mesh", link_from_shape=pose, size=scale, points=points))
                continue
            else:
                raise ValueError(f"shape {item.tag}; expected box, sphere, cylinder or mesh")
            found.append(Shape(kind=item.tag, link_from_shape=pose, size=size))
    return tuple(found)


def _mesh_file(name: str, path: Path) -> Path:
    """Where a mesh is: beside the URDF or above it, whatever package it is said to be of."""
    plain = name.removeprefix("file://").partition("package://")
    relative = Path(plain[2] or plain[0])
    tails = [relative, Path(*relative.parts[1:])] if plain[1] else [relative]
    for folder in (path.parent, *list(path.parent.resolve().parents)[:2]):
        for tail in tails:
            if (folder / tail).is_file():
                return folder / tail
    raise DataError(f"{path} names the mesh {name}, which is not there; expected it beside the URDF")


def _triangles(path: Path) -> Float64[np.ndarray, "t 3 3"]:
    """The triangles of an STL or OBJ file.

    Raises:
        DataError: It is another format, or damaged.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"more than {LARGEST_FILE:,} bytes")
        content = path.read_bytes()
        if path.suffix.lower() == ".obj":
            lines = [line.split() for line in content.decode(errors="replace").splitlines()]
            corners = np.array([line[1:4] for line in lines if line[:1] == ["v"]], dtype=np.float64)
            faces = [[int(part.split("/")[0]) for part in line[1:]] for line in lines if line[:1] == ["f"]]
            fans = [(face[0], face[at], face[at + 1]) for face in faces for at in range(1, len(face) - 1)]
            index = np.array(fans, dtype=np.int64)
            return corners[np.where(index > 0, index - 1, len(corners) + index)]
        if path.suffix.lower() != ".stl":
            raise ValueError(f"a {path.suffix} file")
        count = int.from_bytes(content[80:84], "little")
        if len(content) == 84 + 50 * count:
            packed = np.frombuffer(
                content, np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("tag", "<u2")]), offset=84
            )
            return packed["corners"].astype(np.float64)
        words = [line.split() for line in content.decode("ascii").splitlines()]
        return np.array([line[1:4] for line in words if line[:1] == ["vertex"]], dtype=np.float64).reshape(-1, 3, 3)
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"cannot read the mesh {path} ({error}); expected STL or OBJ") from None


def surface_points(triangles: Float[np.ndarray, "t 3 3"], spacing: float = SPACING) -> Float64[np.ndarray, "m 3"]:
    """Points on triangles, no farther apart than about `spacing` [m]; always the same ones."""
    longest = np.linalg.norm(triangles - np.roll(triangles, 1, axis=1), axis=-1).max(axis=1)
    parts = np.clip(np.ceil(longest / spacing), 1, 200).astype(int)
    found = []
    for count in np.unique(parts):
        i, j = np.mgrid[: count + 1, : count + 1]
        a, b = (axis[i + j <= count] / count for axis in (i, j))
        weights = np.stack([1 - a - b, a, b], axis=-1)
        found.append((weights @ triangles[parts == count]).reshape(-1, 3))
    return np.concatenate(found) if found else np.zeros((0, 3))
