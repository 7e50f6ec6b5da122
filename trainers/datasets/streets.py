"""Street scenes as a car's camera sees them, drawn by this file: eight classes in perspective, no download.

Sky, buildings with windows, road with markings, pavement, trees, poles and lamps, cars, people: each scene has
its own camera (horizon, vanishing point, roll), bends, light, haze, blur and noise. A building, a car or a coat
may have any colour, the sky's and the road's too, and pavement is as grey as road, so that colour and place
tell little of a class; shape and surroundings do. Pixels of the car that carries the camera are IGNORED.

A picture depends on (seed, split, its number, height, width) alone: asking for more pictures keeps the first
ones. Made for demonstrations and tests: what is learned here is of no use outside. It is read from no folder:
leave --data out. Licence: that of this project; nothing in the pictures is anybody else's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from trainers.datasets import IGNORED, Item, Source
from trainers.datasets._drawn import (
    F32,
    SHARPER,
    Canvas,
    Colour,
    Dice,
    Material,
    Tiles,
    develop,
    generators,
    noise,
    scaled,
    splits,
)
from trainers.decode import Pixels

CLASSES = ["sky", "building", "road", "pavement", "tree", "pole", "car", "person"]
SKY, BUILDING, ROAD, PAVEMENT, TREE, POLE, CAR, PERSON = range(8)
COLOURS = [
    (110, 170, 220),
    (120, 85, 75),
    (90, 75, 110),
    (225, 150, 200),
    (75, 140, 50),
    (240, 200, 60),
    (30, 40, 160),
    (215, 40, 60),
]
SMALLEST = 32
DRAWING = 1
"""Goes up when the same arguments draw other pictures: prepared ones are then not taken for these."""
FARTHEST = 140.0
"""Metres to which the street is drawn."""


def source(
    data: str | None,
    *,
    train: int = 600,
    val: int = 100,
    test: int = 100,
    height: int = 96,
    width: int = 128,
    seed: int = 0,
) -> Source:
    if data is not None:
        raise ValueError(f"the data set streets is drawn, not read from a folder; leave --data {data} out")
    counts = {"train": train, "val": val, "test": test}
    items = splits(counts, height=height, width=width, seed=seed, smallest=SMALLEST, args={"drawing": DRAWING})
    return Source(classes=CLASSES, channels=3, splits=items, masks=True, colours=COLOURS)


def read(item: Item) -> list[tuple[Pixels, Pixels]]:
    return [_draw(rng, item.args["height"], item.args["width"]) for rng in generators(item)]


# ---- the camera and its light ----

GROUND, SIDE, FRONT = 0.0, 1.0, 2.0
"""Kinds of surface: what u and v of its tiles are."""
Point = tuple[float, float, float]
"""Metres: right of the camera (along the bend), above the ground, ahead."""


class Light(NamedTuple):
    tint: Colour
    haze: Colour
    sight: float
    """Metres after which a third of a thing's own colour is left."""
    left: float
    """Brightness of walls that face left, right and the camera."""
    right: float
    front: float
    shadow: float
    """Brightness of ground in a shadow."""
    lit: float
    """Share of windows with light behind them."""
    sky: tuple[Colour, Colour]
    """At the horizon, and high up."""
    clouds: float


class Scene:
    """The camera, the light and the canvas of one picture, and how things are put on it."""

    def __init__(self, rng: np.random.RandomState, height: int, width: int) -> None:
        from PIL import Image, ImageDraw

        self.rng, self.dice = rng, Dice(rng)
        self.canvas = Canvas(height, width)
        dice, rows, columns = self.dice, self.canvas.height, self.canvas.width
        self.focal = dice(0.95, 1.3) * min(columns, 1.4 * rows)
        self.centre = (columns * dice(0.25, 0.75), rows * dice(0.3, 0.62))
        self.eye = dice(1.2, 2.3)
        roll = math.radians(dice(-4, 4))
        self.cos, self.sin = math.cos(roll), math.sin(roll)
        self.bend = dice(-1, 1) ** 3 / 70
        self.rise = dice(-1, 1) ** 3 / 2500
        crest = math.sqrt(self.eye / -self.rise) if self.rise < 0 else FARTHEST
        self.far = min(FARTHEST, crest)
        self.light = _light(dice)
        self.near = self.eye * self.focal / (1.3 * rows - self.centre[1])
        self._shadows: Image.Image = Image.new("L", (columns, rows), 255)
        self._shade = ImageDraw.Draw(self._shadows)

    def at(self, point: Point) -> tuple[float, float]:
        """Where on the canvas a point is seen."""
        x, y, z = point
        return self.turned(
            self.focal * (x + self.bend * z * z) / z, self.focal * (self.eye - y - self.rise * z * z) / z
        )

    def turned(self, across: float, down: float) -> tuple[float, float]:
        """A place on the canvas from pixels right of and below the vanishing point, before the camera's roll."""
        x, y = self.centre
        return x + across * self.cos - down * self.sin, y + across * self.sin + down * self.cos

    def scale(self, z: float) -> float:
        """Drawn pixels of a metre at distance `z`."""
        return self.focal / z

    def face(self, number: int, *points: Point) -> None:
        self.canvas.polygon(number, [self.at(point) for point in points])

    def flat(self, label: int, material: Material, z: float) -> int:
        """A new piece that faces the camera at distance `z`."""
        return self.canvas.piece(label, material, (FRONT, 1 / z, 0.0))

    def ground(self, label: int, material: Material) -> int:
        return self.canvas.piece(label, material, (GROUND, 0.0, 0.0))

    def wall(self, label: int, material: Material, x: float, z: tuple[float, float]) -> int:
        """A new piece that runs along the street: a straight wall from (x, z[0]) to (x, z[1])."""
        first, last = x + self.bend * z[0] ** 2, x + self.bend * z[1] ** 2
        slope = (last - first) / (z[1] - z[0])
        offset = first - slope * z[0]
        offset = math.copysign(max(abs(offset), 0.05), offset)
        return self.canvas.piece(label, material, (SIDE, -slope / offset, 1 / offset))

    def shadow(self, *points: Point) -> None:
        """On road and pavement, wherever nothing stands on them."""
        self._shade.polygon([self.at(point) for point in points], fill=int(255 * self.light.shadow))

    def picture(self) -> tuple[Pixels, Pixels]:
        numbers, light, dice = self.canvas.numbers(), self.light, self.dice
        kind, constant, slope = self.canvas.surfaces().T
        across, down = self._rays()
        on_ground, along = (kind == GROUND)[numbers], (kind == SIDE)[numbers]
        inverse = np.where(on_ground, down / self.eye, constant[numbers] + slope[numbers] * across)
        z = 1 / np.clip(inverse, 1 / FARTHEST, 1.0)
        u = np.where(along, z, (across - self.bend * z) * z)
        v = np.where(on_ground, z, self.eye - (down + self.rise * z) * z)
        colours = self.canvas.colours(self.rng, numbers, u, v, (self.focal / z).astype(np.float32))
        colours *= np.where(on_ground, np.asarray(self._shadows, np.float32) / 255, 1)
        own, haze, tint = np.exp(-z / light.sight), _planes(light.haze), _planes(light.tint)
        colours = haze + own * (colours - haze)
        colours = np.where(numbers == 0, self._sky(down), colours) * tint
        image, mask = self.canvas.shrunk(colours, numbers)
        return develop(self.rng, image, blur=max(0.0, dice(-0.3, 0.3)), grain=dice(0.005, 0.04)), mask

    def _rays(self) -> tuple[F32, F32]:
        """For every pixel, metres to the right and down at a metre's distance."""
        x = (np.arange(self.canvas.width, dtype=np.float32) + 0.5 - self.centre[0])[None, :] / self.focal
        y = (np.arange(self.canvas.height, dtype=np.float32) + 0.5 - self.centre[1])[:, None] / self.focal
        return x * self.cos + y * self.sin, y * self.cos - x * self.sin

    def _sky(self, down: F32) -> F32:
        """(3, height, width)"""
        low, high = (_planes(colour) for colour in self.light.sky)
        rows, columns = down.shape
        clouds = noise(self.rng, rows, columns, 28, 50) + 0.5 * noise(self.rng, rows, columns, 10, 20)
        clouds = np.clip(clouds * 2, 0, 1) * self.light.clouds
        sky = low + np.clip(-down * 2.2, 0, 1) * (high - low)
        white = 0.95 * max(self.light.sky[0])
        result: F32 = sky + clouds * (white - sky)
        return result


def _planes(colour: Colour) -> F32:
    """(3, 1, 1)"""
    return np.array(colour, np.float32).reshape(3, 1, 1)


def _light(dice: Dice) -> Light:
    """A bright day, an overcast one, or dusk."""
    kind = dice()
    bright = dice(0.6, 1.0)
    low, high = dice(0.65, 0.95), dice(0.9, 1.1)
    left, right = (low, high) if dice.chance(0.5) else (high, low)
    shadow, lit, clouds, sight = dice(0.45, 0.75), 0.0, dice(0, 0.9), dice(60, 400)
    if kind < 0.5:
        sky = (dice.hue((0.52, 0.62), (0.05, 0.3), (0.75, 1.0)), dice.hue((0.55, 0.63), (0.2, 0.65), (0.5, 1.0)))
    elif kind < 0.8:
        horizon = dice.grey(0.5, 1.0, 0.04)
        sky = (horizon, scaled(horizon, dice(0.75, 1.05)))
        left = right = dice(0.85, 1.0)
        shadow, sight = dice(0.8, 0.95), dice(30, 150)
    else:
        sky = (dice.hue((0.98, 1.12), (0.2, 0.6), (0.4, 0.9)), dice.hue((0.6, 0.85), (0.1, 0.5), (0.2, 0.7)))
        bright, lit = dice(0.5, 0.75), dice(0.0, 0.4)
    tint = (bright * dice(0.85, 1.15), bright * dice(0.9, 1.1), bright * dice(0.85, 1.15))
    return Light(tint, sky[0], sight, left, right, dice(0.75, 1.05), shadow, lit, sky, clouds)


# ---- the scene ----

Thing = tuple[float, Callable[[], None]]
"""How far away the far end of a thing is, and what draws it: things are drawn from far to near."""


class Street(NamedTuple):
    """Metres right of the camera (negative: left of it)."""

    road: tuple[float, float]
    pavement: tuple[float, float]
    """Its outer edges, where buildings may begin."""
    crossing: tuple[float, float] | None
    """The near and far edge of a road that crosses."""


def _draw(rng: np.random.RandomState, height: int, width: int) -> tuple[Pixels, Pixels]:
    """One picture and its mask."""
    scene = Scene(rng, height, width)
    dice = scene.dice
    scene.canvas.piece(SKY, Material((0.5, 0.5, 0.5)), (FRONT, 0.0, 0.0))  # coloured by itself
    left, right = (dice(1.8, 3), dice(2.5, 7))[:: dice.side()]
    walk = dice(2.2, 5), dice(2.2, 5)
    near = dice(8, 16)
    crossing = (near, near + dice(6, 10)) if dice.chance(0.2) else None
    street = Street((-left, right), (-left - walk[0], right + walk[1]), crossing)
    _backdrop(scene)
    _ground(scene, street)
    things = _buildings(scene, street, -1) + _buildings(scene, street, 1)
    for side in (-1, 1):
        things += _furniture(scene, street, side)
    things += _traffic(scene, street) + _people(scene, street)
    for _, draw in sorted(things, key=lambda thing: -thing[0]):
        draw()
    if dice.chance(0.35):
        _bonnet(scene)
    return scene.picture()


def _backdrop(scene: Scene) -> None:
    """What closes the view at the end of the street, from side to side: houses, here and there trees."""
    dice, z = scene.dice, FARTHEST
    scale, reach = scene.scale(z), 1.3 * scene.canvas.width
    ground = scene.focal * (scene.eye / scene.far - scene.rise * scene.far) + 4
    tall, trees = dice(0.5, 1.6), dice(-0.4, 0.3)
    x = -reach
    while x < reach:
        width = dice(8, 40) * scale
        if dice.chance(trees):
            number = scene.flat(TREE, _leaves(dice), z)
            for _ in range(3):
                across, down = scene.turned(x + dice(0, width), ground - dice(0, 6) * scale)
                scene.canvas.ellipse(number, across, down, dice(5, 9) * scale, dice(4, 9) * scale)
        else:
            number = scene.flat(BUILDING, _walls(scene, 1.0), z)
            top = ground - tall * dice(5, 30) * scale
            corners = ((x, ground), (x, top), (x + width, top), (x + width, ground))
            scene.canvas.polygon(number, [scene.turned(*corner) for corner in corners])
        x += width * dice(0.6, 1.1)


def _ground(scene: Scene, street: Street) -> None:
    dice, canvas = scene.dice, scene.canvas
    road, pavement = _surfaces(dice)
    horizon = scene.focal * (scene.eye / scene.far - scene.rise * scene.far)
    reach = 3.0 * canvas.width
    corners = ((-reach, horizon), (reach, horizon), (reach, reach), (-reach, reach))
    canvas.polygon(scene.ground(PAVEMENT, pavement), [scene.turned(*corner) for corner in corners])
    _strip(scene, scene.ground(ROAD, road), *street.road)
    kerb = Material(dice.grey(0.75, 1.0))
    for x, side in zip(street.road, (-1, 1), strict=True):
        _strip(scene, scene.ground(PAVEMENT, kerb), *sorted((x, x + side * dice(0.25, 0.4))))
    if street.crossing is not None:
        _across(scene, scene.ground(ROAD, road), (-60, 60), street.crossing)
    for _ in range(dice.below(3)):  # where the surface was mended
        x, z = dice(*street.road), dice(4, 15)
        mended = scene.ground(ROAD, road._replace(colour=dice.near(road.colour, 0.08)))
        _across(scene, mended, (max(x - dice(0.5, 2), street.road[0]), min(x + 1, street.road[1])), (z, z + dice(1, 6)))
    _markings(scene, street)
    light = scene.light
    side = -1 if light.left > light.right else 1  # the side that the sun is on
    if light.left != light.right and dice.chance(0.6):
        z, reach = dice(1.5, 10), dice(2, 9)
        edge = street.pavement[0 if side < 0 else 1]
        for _ in range(4):
            end = z + dice(4, 14)
            scene.shadow(
                (edge, 0, z), (edge - side * reach, 0, z + 2), (edge - side * reach, 0, end + 2), (edge, 0, end)
            )
            z = end + dice(0, 6)


def _surfaces(dice: Dice) -> tuple[Material, Material]:
    """Of a road and a pavement: either may be the brighter one."""
    road = dice.grey(0.15, 0.6, 0.03)
    kind = dice()
    if kind < 0.6:
        slab = dice.near(scaled(road, dice(1.0, 1.6)), 0.04)
    elif kind < 0.8:
        slab = dice.grey(0.2, 0.8, 0.04)
    else:
        slab = dice.hue((0.0, 0.14), (0.08, 0.4), (0.3, 0.75))
    tiles = None
    if dice.chance(0.9):
        period = (dice(0.4, 1.5), dice(0.4, 1.5))
        joint = dice(0.75, 0.92)
        tiles = Tiles(period, (joint, joint), slab, uneven=dice(0, 0.25))
        slab = scaled(slab, dice(0.6, 0.9))
    return Material(road, None, dice(0.15, 0.3), stains=dice(0, 0.12)), Material(slab, tiles, stains=0.08)


def _strip(scene: Scene, number: int, left: float, right: float) -> None:
    """A strip of ground along the whole street."""
    steps = 14
    distances = [scene.near * (scene.far / scene.near) ** (step / steps) for step in range(steps + 1)]
    outline = [(left, 0.0, z) for z in distances] + [(right, 0.0, z) for z in reversed(distances)]
    scene.face(number, *outline)


def _across(scene: Scene, number: int, x: tuple[float, float], z: tuple[float, float]) -> None:
    """A rectangle of ground; nothing where it is too close to the camera or too far away."""
    first, last = max(z[0], scene.near), min(z[1], scene.far)
    if first < last:
        scene.face(number, (x[0], 0, first), (x[1], 0, first), (x[1], 0, last), (x[0], 0, last))


def _markings(scene: Scene, street: Street) -> None:
    """Lines along the lanes, and stripes for those who cross on foot."""
    dice, (left, right) = scene.dice, street.road
    if dice.chance(0.15):
        return
    paint = dice.grey(0.7, 0.95) if dice.chance(0.85) else dice.hue((0.1, 0.15), (0.5, 0.8), (0.7, 0.95))
    number = scene.ground(ROAD, Material(paint, None, 0.1))
    half, dash, gap = dice(0.06, 0.14), dice(1.5, 4), dice(0, 5)
    lanes = max(1, round((right - left) / 3.2))
    lines = [left + (right - left) * lane / lanes for lane in range(1, lanes)]
    if dice.chance(0.4):
        lines += [left + 0.4, right - 0.4]
    for x in lines:
        z = scene.near * dice(0.9, 1.3)
        while z < min(45.0, scene.far):
            if street.crossing is None or not street.crossing[0] - dash < z < street.crossing[1]:
                _across(scene, number, (x - half, x + half), (z, z + dash))
            z += dash + gap
    if dice.chance(0.35):
        z = street.crossing[0] - 4 if street.crossing is not None else dice(6, 18)
        x = left + 0.3
        while x < right - 0.4:
            _across(scene, number, (x, x + 0.45), (z, z + 3))
            x += 0.95


# ---- buildings ----


def _walls(scene: Scene, light: float) -> Material:
    """Of any colour: bricks, plaster, glass that mirrors the sky, concrete like the road's."""
    dice = scene.dice
    kind = dice()
    if kind < 0.05:
        colour = dice.near(scene.light.sky[dice.below(2)], 0.1)
    elif kind < 0.4:
        colour = dice.hue((0.0, 0.12), (0.2, 0.6), (0.3, 0.8))
    else:
        colour = dice.colour()
    reflecting = dice.chance(0.6)
    glass = dice.near(scaled(scene.light.sky[1], dice(0.15, 0.6)), 0.05) if reflecting else dice.grey(0.05, 0.35)
    period = (dice(2.0, 4.0), dice(2.6, 3.6))
    share = (dice(0.3, 0.55), dice(0.35, 0.6))
    tiles = Tiles(period, share, scaled(glass, light), (dice(), dice(0.3, 0.7)), dice(0.1, 0.7), scene.light.lit)
    return Material(scaled(colour, light), tiles, courses=dice(0.1, 0.25), stains=dice(0, 0.1))


def _buildings(scene: Scene, street: Street, side: int) -> list[Thing]:
    """A row of houses along one side of the street, with gaps."""
    dice, things = scene.dice, []
    edge = street.pavement[0 if side < 0 else 1]
    storeys, gaps, far = dice(1.2, 5), dice(0, 0.3), min(scene.far, 90.0)
    z = dice(1.0, 2.0) if dice.chance(0.8) else dice(5, 20)
    while z < far:
        end = min(z + dice(9, 24), far + 1)
        if street.crossing is not None and z < street.crossing[1] + 1 and end > street.crossing[0] - 1:
            end = street.crossing[0] - 1
        if end - z >= 2:
            x = edge + side * (dice(0, 3) if dice.chance(0.3) else 0.0)
            height = max(3.2, storeys * dice(0.5, 1.5) * 3)
            things.append(_building(scene, side, x, (z, end), height))
        z = max(end, z) + (dice(1.5, 9) if dice.chance(gaps) else 0.0)
        if street.crossing is not None and street.crossing[0] - 1.5 <= z < street.crossing[1] + 1:
            z = street.crossing[1] + 1
    return things


def _building(scene: Scene, side: int, x: float, z: tuple[float, float], height: float) -> Thing:
    """One house: its front along the street, the end that faces the camera, its roof."""

    def draw() -> None:
        dice, light = scene.dice, scene.light
        walls = _walls(scene, 1.0)
        along = _lit(walls, light.right if side < 0 else light.left)
        end = _lit(walls, light.front)
        if dice.chance(0.35):
            end = end._replace(tiles=None)
        near, far, back = z[0], z[1], x + side * dice(7, 14)
        if dice.chance(0.45):
            ridge, middle = height + dice(1.5, 4), (x + back) / 2
            roof = scene.wall(BUILDING, Material(scaled(dice.colour(), dice(0.7, 1.0)), courses=0.2), x, z)
            scene.face(roof, (x, height, near), (x, height, far), (middle, ridge, far), (middle, ridge, near))
            gable = scene.flat(BUILDING, end._replace(tiles=None), near)
            scene.face(gable, (x, height, near), (back, height, near), (middle, ridge, near))
        number = scene.flat(BUILDING, end, near)
        scene.face(number, (x, 0, near), (back, 0, near), (back, height, near), (x, height, near))
        number = scene.wall(BUILDING, along, x, z)
        scene.face(number, (x, 0, near), (x, 0, far), (x, height, far), (x, height, near))
        if dice.chance(0.5):
            _band(scene, dice.near(along.colour, 0.15), x, z, (height - dice(0.2, 0.6), height))
        if dice.chance(0.5):
            tiles = Tiles((dice(2, 5), 4.0), (dice(0.5, 0.85), 0.6), dice.colour(), (dice(), -0.1), 0.5, light.lit)
            _band(scene, dice.near(along.colour, 0.2), x, z, (0.0, dice(2.6, 3.2)), tiles)

    return z[1], draw


def _lit(material: Material, light: float) -> Material:
    tiles = material.tiles
    if tiles is not None:
        tiles = tiles._replace(colour=scaled(tiles.colour, light))
    return material._replace(colour=scaled(material.colour, light), tiles=tiles)


def _band(
    scene: Scene, colour: Colour, x: float, z: tuple[float, float], y: tuple[float, float], tiles: Tiles | None = None
) -> None:
    """A strip along the front of a house: its cornice, or its shops."""
    number = scene.wall(BUILDING, Material(colour, tiles, courses=0.1), x, z)
    scene.face(number, (x, y[0], z[0]), (x, y[0], z[1]), (x, y[1], z[1]), (x, y[1], z[0]))


# ---- trees, poles ----


def _leaves(dice: Dice) -> Material:
    if dice.chance(0.8):
        colour = dice.hue((0.18, 0.42), (0.2, 0.7), (0.2, 0.65))
    else:
        colour = dice.hue((-0.03, 0.17), (0.3, 0.7), (0.3, 0.75))
    return Material(colour, None, 0.15, dice(0.4, 0.7))


def _furniture(scene: Scene, street: Street, side: int) -> list[Thing]:
    """Trees, lamps and signs that stand along the kerb."""
    dice, things = scene.dice, []
    edge, wall = street.road[0 if side < 0 else 1], street.pavement[0 if side < 0 else 1]
    trees, poles, inset = dice(0, 0.45), dice(0.4, 0.8), dice(0.4, 1.1)
    seen = 2 * scene.focal / scene.canvas.width * (abs(edge) + inset)  # as far ahead as this it comes into view
    z = dice(0.9, 1.3) * seen
    while z < min(scene.far, max(20.0, 1.7 * seen)):
        open_ground = street.crossing is None or not street.crossing[0] - 1 < z < street.crossing[1] + 1
        kind = dice()
        if open_ground and kind < trees:
            things.append(_tree(scene, edge + side * inset, z))
        elif open_ground and kind < trees + poles and z < max(14.0, 1.7 * seen):
            things.append(_pole(scene, edge + side * inset, z, side))
        elif open_ground and dice.chance(0.08):
            things.append(_bush(scene, wall - side * 0.5, z))
        z += dice(3.5, 9)
    return things


def _tree(scene: Scene, x: float, z: float) -> Thing:
    def draw() -> None:
        dice, scale = scene.dice, scene.scale(z)
        trunk, radius, half = dice(1.6, 3.2), dice(1.0, 2.4), dice(0.12, 0.25)
        bark = dice.hue((0.0, 0.15), (0.1, 0.5), (0.15, 0.5)) if dice.chance(0.8) else dice.grey(0.3, 0.9)
        number = scene.flat(TREE, Material(bark, None, 0.1, 0.3), z)
        half = max(half, 2.0 * SHARPER / scale)
        scene.face(
            number,
            (x - half, 0, z),
            (x + half, 0, z),
            (x + half / 2, trunk + radius, z),
            (x - half / 2, trunk + radius, z),
        )
        leaves = _leaves(dice)
        shades = [scene.flat(TREE, _lit(leaves, dice(0.6, 1.2)), z) for _ in range(3)]
        if dice.chance(0.2):
            top, half = trunk + radius * dice(2.5, 4), radius * dice(0.7, 1)
            for number, (low, high) in zip(shades, ((0.0, 0.5), (0.25, 0.75), (0.5, 1.0)), strict=True):
                y = [trunk * 0.5 + share * (top - trunk * 0.5) for share in (low, high)]
                wide = half * (1 - low * 0.8)
                scene.face(number, (x - wide, y[0], z), (x + wide, y[0], z), (x, y[1], z))
        else:
            for blob in range(5):
                across, up = dice(-0.35, 0.35) * radius, dice(-0.4, 0.4) * radius
                place = scene.at((x + across, trunk + radius + up, z))
                scene.canvas.ellipse(
                    shades[blob % 3], *place, radius * dice(0.6, 0.9) * scale, radius * dice(0.6, 0.9) * scale
                )
        scene.shadow(*_disc((x + scene.dice(-1, 1), 0, z), radius))

    return z, draw


def _disc(middle: Point, radius: float) -> list[Point]:
    """A circle on the ground."""
    x, y, z = middle
    corners = [2 * math.pi * corner / 8 for corner in range(8)]
    return [(x + radius * math.cos(turn), y, max(1.0, z + radius * math.sin(turn))) for turn in corners]


def _bush(scene: Scene, x: float, z: float) -> Thing:
    def draw() -> None:
        dice, scale = scene.dice, scene.scale(z)
        leaves = _leaves(dice)
        for _ in range(4):
            number = scene.flat(TREE, _lit(leaves, dice(0.7, 1.1)), z)
            radius = dice(0.4, 0.8)
            place = scene.at((x + dice(-0.8, 0.8), radius * 0.8, z))
            scene.canvas.ellipse(number, *place, radius * scale, radius * scale)

    return z, draw


def _pole(scene: Scene, x: float, z: float, side: int) -> Thing:
    """A lamp, a sign or a traffic light, 2.5 pixels wide or more."""

    def draw() -> None:
        dice = scene.dice
        half = max(dice(0.07, 0.13), 2.6 * SHARPER / scene.scale(z))
        colour = dice.grey(0.1, 0.3) if dice.chance(0.7) else dice.grey(0.5, 0.8)
        metal, sunny = (scene.flat(POLE, Material(scaled(colour, tone)), z) for tone in (0.45, 1.9))
        kind = dice()
        height = dice(4.5, 8) if kind < 0.45 else dice(2.3, 3.2)
        scene.face(metal, (x - half, 0, z), (x + half, 0, z), (x + half * 0.9, height, z), (x - half * 0.9, height, z))
        sun = -half if scene.light.left > scene.light.right else half
        scene.face(sunny, (x, 0, z), (x + sun, 0, z), (x + sun * 0.9, height, z), (x, height, z))
        if kind < 0.45:
            tip, deep = x - side * dice(0.8, 2), max(0.15, half)
            scene.face(
                metal, (x, height, z), (x, height - 2 * half, z), (tip, height - half, z), (tip, height + half, z)
            )
            lamp = dice.grey(0.2, 0.6) if scene.light.lit == 0 else (1.6, 1.4, 0.9)
            low, high = height - deep, height + deep
            number = scene.flat(POLE, Material(lamp), z)
            scene.face(number, (tip - 0.4, low, z), (tip + 0.4, low, z), (tip + 0.3, high, z), (tip - 0.3, high, z))
        elif kind < 0.8:
            _sign(scene, x, height, z)
        else:
            low, half = height - 1.0, max(0.2, 1.6 * half)
            box = scene.flat(POLE, Material(dice.grey(0.05, 0.3)), z)
            scene.face(box, (x - half, low, z), (x + half, low, z), (x + half, height, z), (x - half, height, z))
            on = dice.below(3)
            for row, colour in enumerate(((1.0, 0.2, 0.15), (1.0, 0.75, 0.1), (0.2, 1.0, 0.5))):
                number = scene.flat(POLE, Material(scaled(colour, 1.3 if row == on else 0.35)), z)
                radius = 0.12 * scene.scale(z)
                scene.canvas.ellipse(number, *scene.at((x, height - 0.2 - 0.3 * row, z)), radius, radius)

    return z, draw


def _sign(scene: Scene, x: float, height: float, z: float) -> None:
    dice = scene.dice
    red, white = dice.hue((0.97, 1.02), (0.7, 0.95), (0.6, 0.9)), dice.grey(0.8, 1.0)
    blue, yellow = dice.hue((0.57, 0.63), (0.7, 0.95), (0.4, 0.8)), dice.hue((0.12, 0.15), (0.7, 0.95), (0.8, 1.0))
    rim, middle = ((red, white), (white, red), (white, blue), (blue, white), (white, yellow))[dice.below(5)]
    radius, kind = dice(0.4, 0.6), dice.below(3)
    for colour, size in ((rim, radius), (middle, radius * 0.7)):
        number = scene.flat(POLE, Material(colour), z)
        if kind == 0:
            around = size * scene.scale(z)
            scene.canvas.ellipse(number, *scene.at((x, height, z)), around, around)
        else:
            tip = size if kind == 1 else 0.0
            low, high = height - size * 0.8, height + size * 0.8
            scene.face(number, (x - size, low, z), (x + size, low, z), (x + tip, high, z), (x - tip, high, z))


# ---- cars, people ----

PROFILES = {
    "hatchback": (
        4.0,
        1.75,
        ((0, 0.3), (0, 0.85), (0.02, 0.95), (0.12, 1.45), (0.6, 1.5), (0.76, 0.95), (1, 0.75), (1, 0.3)),
    ),
    "saloon": (
        4.6,
        1.8,
        ((0, 0.3), (0, 0.85), (0.14, 0.95), (0.26, 1.4), (0.58, 1.43), (0.72, 0.92), (1, 0.75), (1, 0.3)),
    ),
    "van": (
        5.2,
        1.95,
        ((0, 0.3), (0, 1.1), (0.01, 1.15), (0.03, 2.1), (0.72, 2.15), (0.86, 1.15), (1, 0.95), (1, 0.3)),
    ),
    "lorry": (8.0, 2.3, ((0, 0.5), (0, 1.2), (0.0, 1.3), (0.0, 3.0), (0.96, 3.0), (0.98, 1.4), (1, 1.1), (1, 0.4))),
}
"""Length, width and, from the rear bumper over the roof to the front one, (share of the length, height)."""


def _traffic(scene: Scene, street: Street) -> list[Thing]:
    """Cars ahead, coming towards the camera, parked along the kerbs, and crossing."""
    dice, things = scene.dice, []
    left, right = street.road
    far = min(scene.far, 12.0)
    lanes = [(dice(-0.4, 0.4), False, dice(0.2, 0.9))]
    if right > 4.2 or left < -4.2:
        other = (right + 1.3) / 2 + 0.4 if right > -left else (left - 1.3) / 2 - 0.4
        lanes.append((other, True, dice(0, 0.9)))
    parked = dice(0, 1) if dice.chance(0.75) else 0.0
    for side, edge in ((-1, left), (1, right)):
        if abs(edge) > 3.2 or dice.chance(0.5):
            lanes.append((edge - side * (1.0 if abs(edge) > 3.2 else -0.8), dice.chance(0.5), parked))
    for x, facing, often in lanes:
        z = dice(4.5, 12) + (2.5 if abs(x) < 1.5 else 0)
        while z < far:
            kind = "van" if dice.chance(0.12) else ("hatchback", "saloon")[dice.below(2)]
            if dice.chance(often) and (street.crossing is None or not street.crossing[0] - 5 < z < street.crossing[1]):
                things.append(_car(scene, kind, x, z, facing))
            z += PROFILES[kind][0] + dice(1, 14)
    if street.crossing is not None and street.crossing[0] < far and dice.chance(0.7):
        middle = (street.crossing[0] + street.crossing[1]) / 2
        things.append(_crossing_car(scene, dice(-6, 6), middle - 1))
    return things


class Paint(NamedTuple):
    body: Material
    glass: Material
    tyre: Material


def _paint(scene: Scene) -> Paint:
    dice = scene.dice
    colour = dice.grey(0.08, 0.9) if dice.chance(0.5) else dice.colour()
    glass = scaled(scene.light.sky[1], dice(0.15, 0.8)) if dice.chance(0.6) else dice.grey(0.05, 0.3)
    return Paint(Material(colour, stains=0.06), Material(glass, stains=0.2), Material(dice.grey(0.03, 0.15)))


def _car(scene: Scene, kind: str, x: float, z: float, facing: bool) -> Thing:
    """A car along the street, its front (where it is `facing` the camera) or its rear at distance `z`."""
    length, width, profile = PROFILES[kind]

    def draw() -> None:
        light, paint = scene.light, _paint(scene)
        half = width / 2
        wide = half + 0.2
        scene.shadow(
            (x - wide, 0, z - 0.2), (x + wide, 0, z - 0.2), (x + wide, 0, z + length), (x - wide, 0, z + length)
        )
        under = scene.flat(CAR, paint.tyre, z)
        wide = half * 0.9
        scene.face(under, (x - wide, 0, z), (x + wide, 0, z), (x + wide, 0.5, z), (x - wide, 0.5, z))
        seen = x + scene.bend * z * z
        if abs(seen) > half:  # one of its sides is seen
            side = -1 if seen > 0 else 1

            def place(along: float, y: float) -> Point:
                return x + side * half, y, z + (length - along if facing else along)

            _flank(scene, paint, light.left if side < 0 else light.right, kind, place)
        chain = [(z + (1 - s if facing else s) * length, y) for s, y in (profile[::-1] if facing else profile)]
        steps = ((paint.body, light.front, 1.0, 1.0), (paint.body, 1.0, 1.0, 0.97), (paint.glass, 1.0, 0.95, 0.8))
        for step, (material, tone, low, high) in enumerate(steps):
            (z0, y0), (z1, y1) = chain[step], chain[step + 1]
            number = scene.flat(CAR, _lit(material, tone), z)
            low, high = low * half, high * half
            scene.face(number, (x - low, y0, z0), (x + low, y0, z0), (x + high, y1, z1), (x - high, y1, z1))
        number = scene.flat(CAR, _lit(paint.body, 0.45), z)
        scene.face(number, (x - half, 0.3, z), (x + half, 0.3, z), (x + half, 0.45, z), (x - half, 0.45, z))
        _lamps(scene, (x, chain[1][1] - 0.12, z), half, facing)

    return z + length, draw


def _flank(scene: Scene, paint: Paint, light: float, kind: str, place: Callable[[float, float], Point]) -> None:
    """The side of a car: body, windows, wheels. `place`: metres from the rear and above the ground -> a point."""
    length, _, profile = PROFILES[kind]
    _, _, z = place(0, 0)
    number = scene.flat(CAR, _lit(paint.body, light), z)
    scene.face(number, *(place(s * length, y) for s, y in profile))
    for tone, low, high in ((0.45, 0.3, 0.42), (1.5, 0.7, 0.8)):
        number = scene.flat(CAR, _lit(paint.body, tone * light), z)
        ends = 0.01 * length, 0.99 * length
        scene.face(number, place(ends[0], low), place(ends[1], low), place(ends[1], high), place(ends[0], high))
    windows = profile[2:6]
    middle = sum(s for s, _ in windows) / 4, sum(y for _, y in windows) / 4
    number = scene.flat(CAR, paint.glass, z)
    inner = [(middle[0] + 0.82 * (s - middle[0]), middle[1] + 0.75 * (y - middle[1])) for s, y in windows]
    scene.face(number, *(place(s * length, y) for s, y in inner))
    number = scene.flat(CAR, paint.tyre, z)
    for share in (0.19, 0.81):
        turns = [2 * math.pi * corner / 10 for corner in range(10)]
        scene.face(
            number, *(place(share * length + 0.36 * math.cos(turn), 0.36 + 0.36 * math.sin(turn)) for turn in turns)
        )


def _lamps(scene: Scene, middle: Point, half: float, facing: bool) -> None:
    """Head or tail lamps, and the number plate between them."""
    dice, (x, y, z) = scene.dice, middle
    lamp = dice.grey(0.8, 1.2) if facing else dice.hue((0.97, 1.02), (0.7, 0.95), (0.5, 1.2))
    number = scene.flat(CAR, Material(lamp), z)
    for left, right in ((-half * 0.95, -half * 0.6), (half * 0.6, half * 0.95)):
        corners = ((x + left, y - 0.15, z), (x + right, y - 0.15, z), (x + right, y, z), (x + left, y, z))
        scene.face(number, *corners)
    plate = scene.flat(CAR, Material(dice.grey(0.7, 0.95)), z)
    low = y - 0.3
    scene.face(plate, (x - 0.28, low, z), (x + 0.28, low, z), (x + 0.28, low + 0.12, z), (x - 0.28, low + 0.12, z))


def _crossing_car(scene: Scene, x: float, z: float) -> Thing:
    """A car seen from its side."""
    dice = scene.dice
    kind, way = ("hatchback", "saloon", "van")[dice.below(3)], dice.side()

    def place(along: float, y: float) -> Point:
        return x + way * along, y, z

    def draw() -> None:
        length = PROFILES[kind][0]
        scene.shadow((x, 0, z - 0.3), (x + way * length, 0, z - 0.3), (x + way * length, 0, z + 1.6), (x, 0, z + 1.6))
        paint = _paint(scene)
        under = scene.flat(CAR, paint.tyre, z)
        scene.face(under, place(0.3, 0.1), place(length - 0.3, 0.1), place(length - 0.3, 0.5), place(0.3, 0.5))
        _flank(scene, paint, scene.light.front, kind, place)

    return z + 1.8, draw


def _people(scene: Scene, street: Street) -> list[Thing]:
    """On the pavements and, now and then, on the road."""
    dice, things = scene.dice, []
    for _ in range(1 + dice.below(3)):
        z = dice(3, 7)
        x = dice(-0.45, 0.45) * scene.canvas.width / scene.focal * z - scene.bend * z * z
        x = min(max(x, street.pavement[0] + 0.4), street.pavement[1] - 0.4)
        for _ in range(2 if dice.chance(0.2) else 1):
            things.append(_person(scene, x, z))
            x += dice(0.6, 0.8)
    return things


def _person(scene: Scene, x: float, z: float) -> Thing:
    def draw() -> None:
        dice = scene.dice
        tall = dice(1.5, 1.95) if dice.chance(0.85) else dice(1.1, 1.5)
        wide, pace = tall * dice(0.14, 0.18), tall * dice(0.02, 0.14)
        hip, neck = tall * 0.5, tall * 0.84
        legs = scene.flat(PERSON, Material(scaled(dice.colour(), 0.8), folds=0.3), z)
        shoe, long = tall * 0.055, tall * 0.075
        for foot in (-pace, pace):
            scene.face(
                legs,
                (x + foot - shoe, 0, z),
                (x + foot + shoe * 1.4, 0, z),
                (x + long * 1.5, hip, z),
                (x - long * 1.5, hip, z),
            )
        scene.shadow((x - wide, 0, z - 0.2), (x + wide, 0, z - 0.2), (x + wide, 0, z + 0.3), (x - wide, 0, z + 0.3))
        cloth = dice.hue((0, 1), (0.5, 0.95), (0.3, 0.95)) if dice.chance(0.6) else dice.colour()
        coat = scene.flat(PERSON, Material(cloth, folds=dice(0.25, 0.5)), z)
        low = hip * (dice(0.5, 0.95) if dice.chance(0.4) else 0.95)
        scene.face(
            coat,
            (x - wide * 0.8, low, z),
            (x + wide * 0.8, low, z),
            (x + wide, neck * 0.95, z),
            (x + wide * 0.4, neck, z),
            (x - wide * 0.4, neck, z),
            (x - wide, neck * 0.95, z),
        )
        skin = dice.hue((0.03, 0.09), (0.25, 0.6), (0.25, 0.95))
        head, scale = tall * 0.075, scene.scale(z)
        number = scene.flat(PERSON, Material(skin), z)
        scene.canvas.ellipse(number, *scene.at((x, neck + head, z)), head * scale, head * 1.15 * scale)
        hair = scene.flat(PERSON, Material(dice.colour() if dice.chance(0.3) else dice.grey(0.05, 0.4)), z)
        scene.canvas.ellipse(hair, *scene.at((x, neck + head * 1.7, z)), head * scale, head * 0.6 * scale)

    return z, draw


def _bonnet(scene: Scene) -> None:
    """The car that carries the camera, at the bottom of the picture."""
    dice, canvas = scene.dice, scene.canvas
    number = scene.flat(IGNORED, Material(dice.colour(), stains=0.15), 1.0)
    deep, half = canvas.height * dice(0.05, 0.14), canvas.width * dice(0.4, 0.75)
    canvas.ellipse(number, canvas.width * dice(0.4, 0.6), canvas.height + deep, half, 2 * deep)
