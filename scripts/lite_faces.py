"""Drawn faces, aligned to the GPEN template, so that training knows where a face has its edges.

Head, hair, eyes with iris and catchlight, brows, nose, mouth, beard, glasses; skin of every tone, light from all sides.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from lite_leaves import Textures, dead_leaves, lit, muted_colours, reduced
from numpy.typing import NDArray

from facefix.types import Pixels

Rng = np.random.Generator
Place = Sequence[float] | NDArray[np.float64]


SKINS = np.array(
    [
        [0.98, 0.87, 0.80],
        [0.94, 0.78, 0.68],
        [0.87, 0.69, 0.56],
        [0.76, 0.57, 0.43],
        [0.58, 0.40, 0.29],
        [0.36, 0.24, 0.18],
    ]
)
HAIRS = np.array(
    [
        [0.08, 0.07, 0.07],
        [0.17, 0.12, 0.09],
        [0.35, 0.23, 0.14],
        [0.55, 0.38, 0.22],
        [0.80, 0.66, 0.44],
        [0.75, 0.74, 0.72],
    ]
)
IRISES = np.array([[0.24, 0.14, 0.08], [0.38, 0.25, 0.13], [0.35, 0.40, 0.25], [0.36, 0.50, 0.62], [0.45, 0.48, 0.50]])


def _blend_of(rng: Rng, table: NDArray[np.float64], spread: float) -> NDArray[np.float32]:
    """A (3,) colour between two neighbouring rows of the table, a little off."""
    place = rng.uniform(0, len(table) - 1)
    row = int(place)
    colour = table[row] + (place - row) * (table[row + 1] - table[row]) + rng.normal(0, spread, 3)
    return np.asarray(np.clip(colour, 0.02, 0.98), np.float32)


class _Portrait:
    """One drawn face on a 512 px canvas (twice the 256 px template); each method adds one part."""

    EYES = ((202.0, 242.9), (309.4, 242.3))
    NOSE = (256.1, 304.0)
    MOUTH = ((212.0, 366.8), (300.9, 366.3))

    def __init__(self, rng: Rng, textures: Textures) -> None:
        self.rng, self.textures = rng, textures
        self.skin = _blend_of(rng, SKINS, 0.02)
        self.hair = _blend_of(rng, HAIRS, 0.02)
        backdrop = dead_leaves(rng, 256, textures)
        canvas = cv2.resize(backdrop, (512, 512), interpolation=cv2.INTER_LINEAR)
        self.canvas: Pixels = np.asarray(cv2.GaussianBlur(canvas, (0, 0), float(rng.uniform(1, 24))), np.float32)
        self.centre = np.array([256, 262]) + rng.normal(0, 6, 2)
        self.axes = np.array([rng.uniform(122, 150), rng.uniform(175, 205)])
        turn = rng.uniform(0, 2 * np.pi)
        self.light = np.array([np.cos(turn) * 0.8, np.sin(turn) * 0.6 - 0.3, rng.uniform(0.5, 1.2)])
        self.light /= np.linalg.norm(self.light)
        y, x = np.mgrid[0:512, 0:512].astype(np.float32)
        self.x, self.y = x, y

    def soft_disc(self, centre: Place, radii: Place, edge: float) -> NDArray[np.float32]:
        """A (512, 512) ellipse, 1 inside and 0 outside, whose edge is `edge` wide as a share of its radius."""
        r = np.sqrt(((self.x - centre[0]) / radii[0]) ** 2 + ((self.y - centre[1]) / radii[1]) ** 2)
        return np.asarray(np.clip((1 - r) / edge + 0.5, 0, 1), np.float32)

    def tint(self, cover: NDArray[np.float32], colour: NDArray[np.floating], strength: float) -> None:
        """Moves the canvas towards a colour where cover says so."""
        self.canvas += (cover * np.float32(strength))[..., None] * (np.asarray(colour, np.float32) - self.canvas)

    def curve(self, points: NDArray[np.floating], colour: NDArray[np.floating], width: int) -> None:
        """Draws an open line through (n, 2) points, smooth at sub-pixel steps."""
        line = np.rint(points * 16).astype(np.int32).reshape(-1, 1, 2)
        tint = np.clip(colour, 0, 1).astype(float).tolist()
        cv2.polylines(self.canvas, [line], False, tint, width, cv2.LINE_AA, 4)

    def body(self) -> None:
        """Clothes, neck and the hair behind the head."""
        rng = self.rng
        cloth = muted_colours(rng, 1)[0]
        shoulders = self.soft_disc((256 + rng.normal(0, 20), 590), (rng.uniform(230, 330), rng.uniform(120, 170)), 0.02)
        fabric = (1 + self.textures.cut(rng, 512, 512) * np.float32(rng.uniform(0.02, 0.15)))[..., None] * cloth
        self.canvas += shoulders[..., None] * (fabric - self.canvas)
        self.tint(self.soft_disc((256, 450), (80, 130), 0.06), self.skin * 0.75, 1)
        if rng.random() < 0.85:
            volume = self.axes * rng.uniform(1.05, 1.35, 2)
            drop = rng.choice([-40.0, -10.0, 60.0])
            self.tint(self.soft_disc(self.centre + np.array([0, drop]), volume, 0.05), self.hair, 1)

    def head(self) -> None:
        """The lit head with cheeks, eye sockets and the bridge of the nose."""
        rng = self.rng
        dx, dy = (self.x - self.centre[0]) / self.axes[0], (self.y - self.centre[1]) / self.axes[1]
        nz = np.sqrt(np.clip(1 - dx * dx - dy * dy, 0.02, 1))
        nose = np.exp(-(((self.x - 256) / 16) ** 2) - ((self.y - 280) / 45) ** 2)
        slope_x, slope_y = cv2.Sobel(nose, cv2.CV_32F, 1, 0), cv2.Sobel(nose, cv2.CV_32F, 0, 1)
        shade = self.light[0] * (dx - slope_x) + self.light[1] * (dy - slope_y) + self.light[2] * nz
        ambient = rng.uniform(0.3, 0.65)
        bright = ambient + (1 - ambient) * np.clip(shade, 0, 1.2)
        pores = 1 + self.textures.cut(rng, 512, 512) * rng.uniform(0.005, 0.035)
        face = self.skin * (bright * pores)[..., None].astype(np.float32)
        shine = np.clip(shade, 0, 1) ** 24 * rng.uniform(0, 0.35)
        face = face + shine[..., None].astype(np.float32)
        cover = self.soft_disc(self.centre, self.axes, rng.uniform(0.008, 0.04))
        self.canvas += cover[..., None] * (face - self.canvas)
        for x in (200, 312):
            self.tint(self.soft_disc((x, 310), (45, 35), 1.5), self.skin * [1.05, 0.75, 0.72], rng.uniform(0, 0.35))
            self.tint(self.soft_disc((x, 240), (48, 26), 1.2), self.skin * 0.55, rng.uniform(0.1, 0.5))

    def eye(
        self, at: tuple[float, float], gaze: NDArray[np.floating], open_: float, iris: NDArray[np.floating]
    ) -> None:
        """One eye: white, iris with rays, pupil, catchlight, lids, lashes and brow."""
        rng = self.rng
        t = np.linspace(0, np.pi, 24)
        half, x, y = rng.uniform(25, 31), at[0], at[1]
        upper = np.stack([x - half * np.cos(t), y - open_ * 15 * np.sin(t) ** 0.8], 1)
        lower = np.stack([x - half * np.cos(t), y + open_ * 9 * np.sin(t)], 1)
        stencil = np.zeros((512, 512), np.uint8)
        almond = np.rint(np.concatenate([upper, lower[::-1]]) * 16).astype(np.int32)
        cv2.fillPoly(stencil, [almond], 255, cv2.LINE_AA, 4)
        white = stencil.astype(np.float32) / np.float32(255)
        self.tint(white, np.array([0.88, 0.85, 0.83]) * rng.uniform(0.6, 1.05), 1)
        place = np.array([x, y - 2]) + gaze
        radius = rng.uniform(11, 14)
        rays = 1 + 0.25 * np.sin(np.arctan2(self.y - place[1], self.x - place[0]) * rng.integers(12, 30))
        disc = self.soft_disc(place, (radius, radius), 0.12) * white
        self.canvas += disc[..., None] * (rays[..., None].astype(np.float32) * iris.astype(np.float32) - self.canvas)
        self.tint(
            self.soft_disc(place, (radius, radius), 0.12)
            * (1 - self.soft_disc(place, (radius * 0.85,) * 2, 0.2))
            * white,
            iris * 0.3,
            0.8,
        )
        pupil = radius * rng.uniform(0.3, 0.55)
        self.tint(self.soft_disc(place, (pupil, pupil), 0.2) * white, np.zeros(3) + 0.02, 1)
        spark = place + np.array([-4, -4]) * np.sign(self.light[:2] * [-1, -1] + 1e-9) * [1, 1]
        self.tint(self.soft_disc(spark, (rng.uniform(1.5, 4),) * 2, 0.5) * white, np.ones(3), rng.uniform(0.5, 1))
        self.curve(upper, self.skin * 0.2, int(rng.integers(2, 5)))
        self.curve(lower, self.skin * rng.uniform(0.45, 0.75), 1)
        self.curve(upper - [0, rng.uniform(6, 11)], self.skin * rng.uniform(0.5, 0.75), int(rng.integers(1, 3)))
        self.brow(x, y, half)

    def brow(self, x: float, y: float, half: float) -> None:
        """One brow of many short hairs."""
        rng = self.rng
        lift, thick = rng.uniform(30, 42), rng.uniform(2, 7)
        for _ in range(int(rng.integers(30, 110))):
            u = rng.uniform(-1.25, 1.25)
            root = np.array([x + u * half, y - lift + 9 * u * u + rng.normal(0, thick)])
            way = np.sign(u + 0.3 * np.sign(256 - x))
            tip = root + np.array([way * rng.uniform(2, 8), -rng.uniform(1, 6)])
            self.curve(np.stack([root, tip]), self.hair * rng.uniform(0.5, 1.2), int(rng.integers(1, 3)))

    def nose_and_mouth(self) -> None:
        """Nostrils, the wings of the nose, lips, mouth line or teeth."""
        rng = self.rng
        x, y = self.NOSE
        for side in (-1, 1):
            self.tint(self.soft_disc((x + side * 15, y + 15), (9, 5), 0.6), self.skin * 0.25, rng.uniform(0.5, 0.9))
            t = np.linspace(-1.2, 1.2, 12)
            wing = np.stack([x + side * (22 + 6 * np.cos(t)), y + 6 + 12 * np.sin(t)], 1)
            self.curve(wing, self.skin * rng.uniform(0.5, 0.75), int(rng.integers(1, 3)))
        self.tint(self.soft_disc((x, y - 4), (9, 7), 1.2), np.ones(3), rng.uniform(0, 0.3))
        (x0, y0), (x1, y1) = self.MOUTH
        t = np.linspace(0, 1, 32)
        line = np.stack([x0 + (x1 - x0) * t, y0 + (y1 - y0) * t + rng.normal(0, 5) * np.sin(np.pi * t)], 1)
        bow = np.sin(np.pi * t)[:, None] * [0.0, 1.0]
        gap, up, down = rng.choice([0, rng.uniform(4, 18)]), rng.uniform(5, 13), rng.uniform(8, 18)
        dip = 1 - 0.35 * np.exp(-(((t - 0.5) / 0.08) ** 2))[:, None]
        red = np.clip(self.skin * [0.95, 0.6, 0.6] * rng.uniform(0.7, 1.1), 0, 1)
        self.fill(np.concatenate([line - bow * up * dip, (line + bow * (gap + down))[::-1]]), red)
        if gap > 0:
            self.fill(
                np.concatenate([line, (line + bow * gap)[::-1]]), np.array([0.85, 0.82, 0.76]) * rng.uniform(0.3, 1)
            )
        self.curve(line, self.skin * 0.25, int(rng.integers(1, 4)))
        self.tint(self.soft_disc(((x0 + x1) / 2, y0 + gap + down * 0.6), (16, 3), 1.5), np.ones(3), rng.uniform(0, 0.4))

    def fill(self, outline: NDArray[np.floating], colour: NDArray[np.floating]) -> None:
        """Fills a closed outline of (n, 2) points."""
        stencil = np.zeros((512, 512), np.uint8)
        cv2.fillPoly(stencil, [np.rint(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        sharp = stencil.astype(np.float32) / np.float32(255)
        cover = cv2.GaussianBlur(sharp, (0, 0), float(self.rng.uniform(0.5, 2.0)))
        self.tint(np.asarray(cover, np.float32), colour, 0.9)

    def skin_marks(self) -> None:
        """Wrinkles, freckles, beard stubble: thin lines and dots with their own strength."""
        rng = self.rng
        for _ in range(int(rng.choice([0, 4, 14]))):
            start, slant = self.centre + rng.normal(0, 0.45, 2) * self.axes, rng.normal(0, 0.5)
            t = np.linspace(0, 1, 10)[:, None]
            bend = np.sin(np.pi * t) * [0, rng.normal(0, 6)]
            crease = start + t * [rng.uniform(15, 60), slant * 40] + bend
            self.curve(crease, self.skin * rng.uniform(0.55, 0.85), 1)
        beard = rng.random() < 0.3
        for _ in range(int(rng.integers(400, 1800)) if beard else int(rng.choice([0, 60]))):
            angle, reach = rng.uniform(0.1, np.pi - 0.1), rng.uniform(0.62, 1.0)
            root = self.centre + np.array([np.cos(angle), np.sin(angle)]) * self.axes * reach
            if beard and not (205 < root[0] < 305 and 350 < root[1] < 385):
                tip = root + rng.normal(0, 3, 2) + [0, 4]
                self.curve(np.stack([root, tip]), self.hair * rng.uniform(0.6, 1.4), 1)
            elif not beard:
                spot = self.centre + rng.normal(0, 0.4, 2) * self.axes
                self.curve(np.stack([spot, spot + 0.5]), self.skin * 0.65, int(rng.integers(1, 4)))

    def top_hair(self) -> None:
        """Strands over the crown and down the sides, or none."""
        rng = self.rng
        if rng.random() < 0.12:
            return
        length, parting = rng.choice([60.0, 140.0, 320.0]), self.centre[0] + rng.normal(0, 40)
        fringe = rng.uniform(0.55, 0.95)
        for _ in range(int(rng.integers(300, 900))):
            angle = rng.uniform(np.pi, 2 * np.pi)
            root = self.centre + np.array([np.cos(angle), np.sin(angle)]) * self.axes * rng.uniform(fringe, 1.12)
            way = 1.0 if root[0] > parting else -1.0
            steps = np.linspace(0, 1, 14)
            fall = np.stack([way * 34 * np.sqrt(steps), steps**1.5 * length], 1) + rng.normal(0, 3, 2) * steps[:, None]
            shine = 0.55 + 0.9 * np.clip(-np.sin(angle + self.light[0]), 0, 1) * rng.random()
            self.curve(root + fall * rng.uniform(0.4, 1.0), self.hair * shine, int(rng.integers(1, 4)))

    def glasses(self) -> None:
        """A frame with thin or thick rims and a glint."""
        rng = self.rng
        colour = rng.choice([np.array([0.05, 0.05, 0.06]), np.array([0.5, 0.42, 0.25]), np.array([0.35, 0.15, 0.1])])
        t = np.linspace(0, 2 * np.pi, 48)
        width = int(rng.integers(1, 7))
        for x, y in self.EYES:
            square = rng.uniform(0.4, 1.0)
            rim = np.stack(
                [np.sign(np.cos(t)) * np.abs(np.cos(t)) ** square, np.sign(np.sin(t)) * np.abs(np.sin(t)) ** square], 1
            )
            self.curve(np.array([x, y + 4]) + rim * [40, 32], colour, width)
        self.curve(np.array([[242.0, 240], [256, 234], [270, 240]]), colour, width)


def drawn_face(rng: Rng, size: int, textures: Textures) -> Pixels:
    """A (size, size, 3) made face that stands where the GPEN template puts eyes, nose and mouth (a little jittered)."""
    portrait = _Portrait(rng, textures)
    portrait.body()
    portrait.head()
    gaze, open_, iris = rng.normal(0, 3, 2), rng.uniform(0.3, 1.2), _blend_of(rng, IRISES, 0.02)
    for at in portrait.EYES:
        portrait.eye(at, gaze, float(open_), iris)
    portrait.nose_and_mouth()
    portrait.skin_marks()
    portrait.top_hair()
    if rng.random() < 0.2:
        portrait.glasses()
    spin, zoom = rng.normal(0, 3), rng.uniform(0.95, 1.06)
    turn = cv2.getRotationMatrix2D((255.5, 255.5), float(spin), float(zoom))
    turned = cv2.warpAffine(portrait.canvas, turn, (512, 512), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    return reduced(lit(np.asarray(turned, np.float32), rng, textures), size, rng)
