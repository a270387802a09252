"""XMP packets: the label that a photo holds AI-reconstructed faces, merged into what a packet says already.

Source: XMP specification part 1 (ISO 16684-1), IPTC Photo Metadata Standard 2023.1, property Digital Source Type.
"""

from __future__ import annotations

from xml.dom import minidom
from xml.parsers import expat

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_META = "adobe:ns:meta/"
_IPTC_EXT = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_TIFF = "http://ns.adobe.com/tiff/1.0/"
_EXIF = "http://ns.adobe.com/exif/1.0/"
_XMLNS = "http://www.w3.org/2000/xmlns/"
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
_ALL_MADE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_EMPTY = f'<x:xmpmeta xmlns:x="{_META}"><rdf:RDF xmlns:rdf="{RDF}"/></x:xmpmeta>'
# what points at bytes behind the JPEG's end (gain map, motion photo), which a changed photo does not have any more
_BEHIND = {
    ("http://ns.google.com/photos/1.0/container/", "Directory"),
    ("http://ns.adobe.com/hdr-gain-map/1.0/", "Version"),
    ("http://ns.google.com/photos/1.0/camera/", "MotionPhoto"),
    ("http://ns.google.com/photos/1.0/camera/", "MicroVideo"),
    ("http://ns.adobe.com/xap/1.0/", "Thumbnails"),
}


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


def settle(packet: bytes | None, *, ai_label: bool, width: int, height: int) -> bytes | None:
    """The packet for an upright, changed photo; None where there was none and no label is wanted.

    Args:
        packet: the old packet, checked before, or None.
        ai_label: whether to say that the photo holds AI-made parts. A photo that is called wholly AI-made stays so.
        width: of the photo, in pixels.
        height: of the photo, in pixels.
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
        _add(document, rdf, _IPTC_EXT, "Iptc4xmpExt:DigitalSourceType", SOURCE_TYPE)
    whole = rdf.parentNode if isinstance(rdf.parentNode, minidom.Element) else rdf
    body = whole.toxml()
    packed = f'<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n{body}\n<?xpacket end="w"?>'
    return packed.encode()


def _parsed(packet: bytes) -> minidom.Document:
    packet = packet.strip(b"\x00 \t\r\n") if packet[:2] not in (b"\xfe\xff", b"\xff\xfe") else packet
    guard = expat.ParserCreate()
    guard.StartDoctypeDeclHandler = _refuse
    guard.EntityDeclHandler = _refuse
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


def _descriptions(rdf: minidom.Element) -> list[minidom.Element]:
    return [n for n in rdf.childNodes if isinstance(n, minidom.Element) and n.namespaceURI == RDF]


def _properties(about: minidom.Element, space: str, name: str) -> list[minidom.Element]:
    elements = [node for node in about.childNodes if isinstance(node, minidom.Element)]
    return [node for node in elements if (node.namespaceURI, node.localName) == (space, name)]


def _find(rdf: minidom.Element, space: str, name: str) -> str | None:
    for about in _descriptions(rdf):
        if about.hasAttributeNS(space, name):
            return about.getAttributeNS(space, name).strip()
        for node in _properties(about, space, name):
            text = "".join(part.data for part in node.childNodes if isinstance(part, minidom.Text)).strip()
            return text or node.getAttributeNS(RDF, "resource")
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


def _add(document: minidom.Document, rdf: minidom.Element, space: str, qualified: str, value: str) -> None:
    """Adds a description of its own, so that no prefix of the others is touched; it is about the same resource."""
    others = [about for about in _descriptions(rdf) if about.hasAttributeNS(RDF, "about")]
    prefix = rdf.prefix or "rdf"
    description = document.createElementNS(RDF, f"{prefix}:Description")
    description.setAttributeNS(RDF, f"{prefix}:about", others[0].getAttributeNS(RDF, "about") if others else "")
    description.setAttributeNS(_XMLNS, f"xmlns:{qualified.split(':')[0]}", space)
    node = document.createElementNS(space, qualified)
    node.appendChild(document.createTextNode(value))
    description.appendChild(node)
    rdf.appendChild(description)
