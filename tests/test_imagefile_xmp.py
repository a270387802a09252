"""The label and the regions that XMP carries, as other readers see them."""

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facefix import FaceFix, Recipe, imagefile
from facefix.imagefile import xmp
from facefix.types import Box, Meta, Photo

IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
WIDTH, HEIGHT = 300, 200
FACES = [Box(10, 20, 110, 140), Box(5, 5, 33, 34)]
# a region in the short form that other programs write, under prefixes of their own
FOREIGN = (
    b'<r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><r:Description r:about="uuid:7"'
    b' xmlns:e="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"><e:ImageRegion><r:Bag>'
    b'<r:li><r:Description e:rId="crop-1"><e:RegionBoundary e:rbShape="circle" e:rbUnit="pixel"'
    b' e:rbX="7" e:rbY="8" e:rbRx="9"/></r:Description></r:li></r:Bag></e:ImageRegion></r:Description></r:RDF>'
)


def settled(packet: bytes | None, regions: list[Box], *, ai_label: bool = True) -> bytes:
    done = xmp.settle(packet, ai_label=ai_label, width=WIDTH, height=HEIGHT, regions=regions)
    assert done is not None
    return done


def regions_in(packet: bytes) -> list[ET.Element]:
    """The items of the one ImageRegion property."""
    [found] = ET.fromstring(packet).iter(f"{IPTC}ImageRegion")
    return found.findall(f"{RDF}Bag/{RDF}li")


def box_of(item: ET.Element) -> Box:
    """The rectangle in pixels."""
    [boundary] = item.iter(f"{IPTC}RegionBoundary")
    said = {node.tag.removeprefix(IPTC): node.text or "" for node in boundary}
    assert (said["rbShape"], said["rbUnit"]) == ("rectangle", "relative")
    x, y, w, h = (float(said[name]) for name in ("rbX", "rbY", "rbW", "rbH"))
    return Box(round(x * WIDTH), round(y * HEIGHT), round((x + w) * WIDTH), round((y + h) * HEIGHT))


def test_each_face_is_a_region_with_its_type_role_and_source() -> None:
    items = regions_in(settled(None, FACES))
    assert [box_of(item) for item in items] == FACES
    for item, box in zip(items, FACES, strict=True):
        assert item.findtext(f"{IPTC}rId") == "facefix-" + "-".join(map(str, box))
        assert item.findtext(f"{IPTC}Name/{RDF}Alt/{RDF}li") == "Face reconstructed with AI"
        assert item.findtext(f"{IPTC}DigitalSourceType") == xmp.SOURCE_TYPE
        for name, code in (("rCtype", "imageregiontype/human"), ("rRole", "imageregionrole/compositeImageItem")):
            [term] = item.findall(f"{IPTC}{name}/{RDF}Bag/{RDF}li/{{http://ns.adobe.com/xap/1.0/}}Identifier")
            assert term.findtext(f"{RDF}Bag/{RDF}li") == f"http://cv.iptc.org/newscodes/{code}"


def test_no_regions_without_the_label() -> None:
    assert xmp.settle(None, ai_label=False, width=WIDTH, height=HEIGHT, regions=FACES) is None
    assert b"facefix-" not in settled(FOREIGN, FACES, ai_label=False)


def test_regions_that_are_there_stay_and_none_is_named_twice() -> None:
    once = settled(FOREIGN, FACES[:1])
    twice = settled(once, FACES)
    assert [len(regions_in(packet)) for packet in (once, twice)] == [2, 3]
    [circle] = regions_in(twice)[0].iter(f"{IPTC}RegionBoundary")
    assert circle.attrib == {f"{IPTC}rbShape": "circle", f"{IPTC}rbUnit": "pixel"} | {
        f"{IPTC}{name}": value for name, value in (("rbX", "7"), ("rbY", "8"), ("rbRx", "9"))
    }


def test_clearing_takes_out_what_settling_put_in() -> None:
    assert xmp.cleared(settled(None, FACES), FACES) is None
    left = xmp.cleared(settled(None, FACES), FACES[:1])
    assert left is not None
    assert [box_of(item) for item in regions_in(left)] == FACES[1:]
    assert xmp.source_type(left) is None
    foreign = xmp.cleared(settled(FOREIGN, FACES), FACES)
    assert foreign is not None
    assert len(regions_in(foreign)) == 1
    assert b'about="uuid:7"' in foreign


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_pillow_reads_the_regions_of_every_format(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("defusedxml")
    path = tmp_path / f"photo{suffix}"
    photo = Photo(np.full((HEIGHT, WIDTH, 3), 90, np.uint8), Meta(xmp=FOREIGN))
    assert imagefile.write(photo, path, regions=FACES) == ()
    with Image.open(path) as picture:
        described = picture.getxmp()["xmpmeta"]["RDF"] if "xmpmeta" in picture.getxmp() else picture.getxmp()["RDF"]
    [bag] = [about["ImageRegion"]["Bag"]["li"] for about in described["Description"] if "ImageRegion" in about]
    assert [item.get("rId") for item in bag[1:]] == ["facefix-10-20-110-140", "facefix-5-5-33-34"]
    assert bag[1]["RegionBoundary"]["rbW"] == "0.3333333"
    back = imagefile.read(path).meta
    assert back.xmp is not None
    assert len(regions_in(back.xmp)) == 3
    again = imagefile.write(replace(photo, meta=back), path, regions=FACES, overwrite=True)
    rewritten = imagefile.read(path).meta.xmp
    assert again == ()
    assert rewritten is not None
    assert len(regions_in(rewritten)) == 3


def test_more_regions_than_a_jpeg_holds_leave_the_label(tmp_path: Path) -> None:
    photo = Photo(np.full((HEIGHT, WIDTH, 3), 90, np.uint8), Meta(format="JPEG"))
    many = [Box(x, 0, x + 9, 9) for x in range(100)]
    [told] = imagefile.write(photo, tmp_path / "crowd.jpg", regions=many)
    assert told == "the XMP does not name the 100 regions: that is more than a JPEG segment holds"
    packet = imagefile.read(tmp_path / "crowd.jpg").meta.xmp
    assert packet is not None
    assert xmp.source_type(packet) == xmp.SOURCE_TYPE
    assert imagefile.write(photo, tmp_path / "crowd.png", regions=many) == ()


def test_an_unchanged_photo_is_saved_as_a_copy(tmp_path: Path) -> None:
    source = tmp_path / "a.jpg"
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(source, quality=71)
    photo = imagefile.read(source)
    same = replace(photo, raster=photo.raster.copy())
    assert imagefile.save(same, photo, tmp_path / "b.jpg", ai_label=True, regions=FACES) == ()
    assert (tmp_path / "b.jpg").read_bytes() == source.read_bytes()
    imagefile.save(same, photo, tmp_path / "c.png", ai_label=False)
    other = replace(photo, raster=photo.raster + np.uint8(9))
    imagefile.save(other, photo, tmp_path / "d.jpg", ai_label=True, regions=FACES)
    assert imagefile.read(tmp_path / "c.png").meta.format == "PNG"
    assert b"facefix-10-20-110-140" in (tmp_path / "d.jpg").read_bytes()


@pytest.mark.parametrize("ai_label", [True, False])
def test_a_restored_photo_names_its_face_unless_that_is_switched_off(
    portrait_file: Path, tmp_path: Path, ai_label: bool
) -> None:
    fix = FaceFix.load(Recipe(restorer="pattern", sharp_faces="restore", ai_label=ai_label))
    photo = imagefile.read(portrait_file)
    result = fix(photo)
    fix.save(result, photo, tmp_path / "restored.jpg")
    packet = imagefile.read(tmp_path / "restored.jpg").meta.xmp
    if not ai_label:
        assert packet is None
        return
    assert packet is not None
    [region] = ET.fromstring(packet).iter(f"{IPTC}RegionBoundary")
    said = {node.tag.removeprefix(IPTC): node.text or "" for node in region}
    x0, y0, x1, y1 = result.report.faces[0].face.box_xyxy / 512
    assert float(said["rbX"]) < x0 < x1 < float(said["rbX"]) + float(said["rbW"])
    assert float(said["rbY"]) < y0 < y1 < float(said["rbY"]) + float(said["rbH"])
