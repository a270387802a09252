"""XMP packets: that a photo holds AI-reconstructed faces, and where, merged into what a packet says already.

Each face is an image region of IPTC: a rectangle in parts of the picture's width and height from its upper left corner,
with an identifier made from its pixels, the content type human, the role of an item in a composite, and its own digital
source type.

Source: XMP specification part 1 (ISO 16684-1); IPTC Photo Metadata Standard 2023.1, properties Digital Source Type and
Image Region (since 2019.1), and the IPTC vocabularies of region types and roles. Checked with ExifTool 12.57.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from xml.dom import minidom
from xml.parsers import expat

from facefix.types import Box

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_META = "adobe:ns:meta/"
_IPTC_EXT = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_TIFF = "http://ns.adobe.com/tiff/1.0/"
_EXIF = "http://ns.adobe.com/exif/1.0/"
_XMP = "http://ns.adobe.com/xap/1.0/"
_XMLNS = "http://www.w3.org/2000/xmlns/"
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
_ALL_MADE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_DEEPEST = 200  # elements in one another; each takes a call to write, and calls have a limit, too
_EMPTY = f'<x:xmpmeta xmlns:x="{_META}"><rdf:RDF xmlns:rdf="{RDF}"/></x:xmpmeta>'
# what points at bytes behind the JPEG's end (gain map, motion photo), which a changed photo does not have any more
_BEHIND = {
    ("http://ns.google.com/photos/1.0/container/", "Directory"),
    ("http://ns.adobe.com/hdr-gain-map/1.0/", "Version"),
    ("http://ns.google.com/photos/1.0/camera/", "MotionPhoto"),
    ("http://ns.google.com/photos/1.0/camera/", "MicroVideo"),
    (_XMP, "Thumbnails"),
}
_NAMESPACES = {"rdf": RDF, "Iptc4xmpExt": _IPTC_EXT, "xmp": _XMP}
_TERM = (
    '<Iptc4xmpExt:{0}><rdf:Bag><rdf:li rdf:parseType="Resource"><xmp:Identifier><rdf:Bag><rdf:li>'
    "http://cv.iptc.org/newscodes/{1}</rdf:li></rdf:Bag></xmp:Identifier></rdf:li></rdf:Bag></Iptc4xmpExt:{0}>"
)
_REGION = (
    '<rdf:li rdf:parseType="Resource"><Iptc4xmpExt:RegionBoundary rdf:parseType="Resource">{boundary}'
    "</Iptc4xmpExt:RegionBoundary><Iptc4xmpExt:rId>{id}</Iptc4xmpExt:rId><Iptc4xmpExt:Name><rdf:Alt>"
    '<rdf:li xml:lang="x-default">Face reconstructed with AI</rdf:li></rdf:Alt></Iptc4xmpExt:Name>'
    + _TERM.format("rCtype", "imageregiontype/human")
    + _TERM.format("rRole", "imageregionrole/compositeImageItem")
    + f"<Iptc4xmpExt:DigitalSourceType>{SOURCE_TYPE}</Iptc4xmpExt:DigitalSourceType></rdf:li>"
)


def check(packet: bytes) -> None:
    """Nothing; raises ValueError, with the reason, where the packet is no XMP that can be read safely."""
    _rdf(_parsed(packet))


def orientation(packet: bytes) -> int:
    """The packet's tiff:Orientation, 1 to 8; 1 where there is none."""
    value = _find(_rdf(_parsed(packet)), _TIFF, "Orientation") or "1"
    return int(value) if value in "12345678" and len(value) == 1 else 1


def source_type(packet: bytes) -> str | None:
    """The packet's DigitalSourceType, or None."""
    return _find(_rdf(_parsed(packet)), _IPTC_EXT, "DigitalSourceType")


def settle(
    packet: bytes | None, *, ai_label: bool, width: int, height: int, regions: Sequence[Box] = ()
) -> bytes | None:
    """The packet for an upright, changed photo; None where there was none and no label is wanted.

    Args:
        packet: the old packet, checked before, or None.
        ai_label: whether to say that the photo holds AI-made parts. A photo that is called wholly AI-made stays so.
        width: of the photo, in pixels.
        height: of the photo, in pixels.
        regions: the AI-made parts, named only where the label is wanted. Regions that the packet has already stay.
    """
    if packet is None and not ai_label:
        return None
    document = _parsed(packet if packet is not None else _EMPTY.encode())
    rdf = _rdf(document)
    for space, name, value in (
        (_TIFF, "Orientation", 1),
        (_TIFF, "ImageWidth", width),
        (_TIFF, "ImageLength", height),
        (_EXIF, "PixelXDimension", width),
        (_EXIF, "PixelYDimension", height),
    ):
        _replace(rdf, space, name, str(value))
    for space, name in _BEHIND:
        _remove(rdf, space, name)
    if ai_label and _find(rdf, _IPTC_EXT, "DigitalSourceType") not in (_ALL_MADE, SOURCE_TYPE):
        _remove(rdf, _IPTC_EXT, "DigitalSourceType")
        _add(document, rdf, f"<Iptc4xmpExt:DigitalSourceType>{SOURCE_TYPE}</Iptc4xmpExt:DigitalSourceType>")
    if ai_label and regions:
        _add_regions(document, rdf, regions, width, height)
    return _packed(rdf)


def all_made() -> bytes:
    """A packet that calls a whole picture AI-made."""
    packet = settle(None, ai_label=True, width=0, height=0)
    return (packet or b"").replace(SOURCE_TYPE.encode(), _ALL_MADE.encode())


def cleared(packet: bytes, regions: Iterable[Box]) -> bytes | None:
    """The packet that `settle` made, without its label and these regions; None where nothing else is in it.

    Args:
        packet: as it was read from a written photo.
        regions: as they were given to `settle`.
    """
    rdf = _rdf(_parsed(packet))
    own = {_region_id(box) for box in regions}
    for about in _descriptions(rdf):
        for node in _properties(about, _IPTC_EXT, "ImageRegion"):
            items = [item for bag in _children(node) for item in _children(bag)]
            others = [item for item in items if _text(_properties(item, _IPTC_EXT, "rId")) not in own]
            for item in items:
                if item not in others and item.parentNode is not None:
                    item.parentNode.removeChild(item)
            if items and not others:
                about.removeChild(node)
    if _find(rdf, _IPTC_EXT, "DigitalSourceType") == SOURCE_TYPE:
        _remove(rdf, _IPTC_EXT, "DigitalSourceType")
    for about in _descriptions(rdf):
        attributes = about.attributes.values()
        if not _children(about) and all(each.prefix == "xmlns" or each.localName == "about" for each in attributes):
            rdf.removeChild(about)
    return _packed(rdf) if _descriptions(rdf) else None


def _packed(rdf: minidom.Element) -> bytes:
    """The packet around the RDF element."""
    whole = rdf.parentNode if isinstance(rdf.parentNode, minidom.Element) else rdf
    body = whole.toxml()
    packed = f'<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n{body}\n<?xpacket end="w"?>'
    return packed.encode()


def _parsed(packet: bytes) -> minidom.Document:
    packet = packet.strip(b"\x00 \t\r\n") if packet[:2] not in (b"\xfe\xff", b"\xff\xfe") else packet
    open_elements: list[str] = []

    def begins(name: str, _: object) -> None:
        open_elements.append(name)
        if len(open_elements) > _DEEPEST:
            raise ValueError(f"it has more than {_DEEPEST} elements in one another")

    guard = expat.ParserCreate()
    guard.StartDoctypeDeclHandler = _refuse
    guard.EntityDeclHandler = _refuse
    guard.StartElementHandler = begins
    guard.EndElementHandler = lambda _: open_elements.pop()
    try:
        guard.Parse(packet, True)
        return minidom.parseString(packet)
    except expat.ExpatError as error:
        raise ValueError(f"it is not well-formed XML ({error})") from error


def _refuse(*_: object) -> None:
    raise ValueError("it declares a document type or entities, which XMP never needs")


def _rdf(document: minidom.Document) -> minidom.Element:
    found = document.getElementsByTagNameNS(RDF, "RDF")
    if not found:
        raise ValueError("it holds no rdf:RDF")
    return found[0]


def _children(node: minidom.Element) -> list[minidom.Element]:
    return [child for child in node.childNodes if isinstance(child, minidom.Element)]


def _descriptions(rdf: minidom.Element) -> list[minidom.Element]:
    return [node for node in _children(rdf) if node.namespaceURI == RDF]


def _properties(about: minidom.Element, space: str, name: str) -> list[minidom.Element]:
    return [node for node in _children(about) if (node.namespaceURI, node.localName) == (space, name)]


def _text(nodes: Sequence[minidom.Element]) -> str:
    """What stands in the first of the elements."""
    parts = [part for node in nodes[:1] for part in node.childNodes]
    return "".join(part.data for part in parts if isinstance(part, minidom.Text)).strip()


def _find(rdf: minidom.Element, space: str, name: str) -> str | None:
    for about in _descriptions(rdf):
        if about.hasAttributeNS(space, name):
            return about.getAttributeNS(space, name).strip()
        for node in _properties(about, space, name):
            return _text([node]) or node.getAttributeNS(RDF, "resource")
    return None


def _replace(rdf: minidom.Element, space: str, name: str, value: str) -> None:
    """Sets a simple property where it stands; where it does not stand, nothing is added."""
    for about in _descriptions(rdf):
        if attribute := about.getAttributeNodeNS(space, name):
            attribute.value = value
        for node in _properties(about, space, name):
            if len(node.childNodes) == 1 and isinstance(node.childNodes[0], minidom.Text):
                node.childNodes[0].data = value


def _remove(rdf: minidom.Element, space: str, name: str) -> None:
    for about in _descriptions(rdf):
        if about.hasAttributeNS(space, name):
            about.removeAttributeNS(space, name)
        for node in _properties(about, space, name):
            about.removeChild(node)


def _add(document: minidom.Document, rdf: minidom.Element, content: str) -> None:
    """Adds a description of its own, so that no prefix of the others is touched; it is about the same resource."""
    others = [about for about in _descriptions(rdf) if about.hasAttributeNS(RDF, "about")]
    prefix = rdf.prefix or "rdf"
    description = document.createElementNS(RDF, f"{prefix}:Description")
    description.setAttributeNS(RDF, f"{prefix}:about", others[0].getAttributeNS(RDF, "about") if others else "")
    _fill(document, description, content)
    rdf.appendChild(description)


def _add_regions(
    document: minidom.Document, rdf: minidom.Element, regions: Sequence[Box], width: int, height: int
) -> None:
    """Adds the regions to the list that is there, or with a new one; a region that it names already is not repeated."""
    lists = [
        bag
        for about in _descriptions(rdf)
        for node in _properties(about, _IPTC_EXT, "ImageRegion")
        for bag in _children(node)
        if bag.namespaceURI == RDF
    ]
    named = {_text(_properties(item, _IPTC_EXT, "rId")) for bag in lists[:1] for item in _children(bag)}
    items = "".join(_region(box, width, height) for box in regions if _region_id(box) not in named)
    if lists:
        _fill(document, lists[0], items)
    else:
        _add(document, rdf, f"<Iptc4xmpExt:ImageRegion><rdf:Bag>{items}</rdf:Bag></Iptc4xmpExt:ImageRegion>")


def _region(box: Box, width: int, height: int) -> str:
    x, y, w, h = box.x0 / width, box.y0 / height, (box.x1 - box.x0) / width, (box.y1 - box.y0) / height
    parts = {"rbShape": "rectangle", "rbUnit": "relative"}
    parts |= {name: f"{value:.7g}" for name, value in {"rbX": x, "rbY": y, "rbW": w, "rbH": h}.items()}
    boundary = "".join(f"<Iptc4xmpExt:{name}>{value}</Iptc4xmpExt:{name}>" for name, value in parts.items())
    return _REGION.format(boundary=boundary, id=_region_id(box))


def _region_id(box: Box) -> str:
    return "facefix-" + "-".join(map(str, box))


def _fill(document: minidom.Document, parent: minidom.Element, content: str) -> None:
    """Appends the elements that the text describes, and declares their prefixes on the parent."""
    declared = "".join(f' xmlns:{prefix}="{space}"' for prefix, space in _NAMESPACES.items())
    for prefix, space in _NAMESPACES.items():
        if f"{prefix}:" in content:
            parent.setAttributeNS(_XMLNS, f"xmlns:{prefix}", space)
    described = minidom.parseString(f"<root{declared}>{content}</root>")
    for root in described.childNodes:
        for node in root.childNodes:
            parent.appendChild(document.importNode(node, True))
