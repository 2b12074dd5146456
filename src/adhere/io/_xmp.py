"""XMP (captions, ratings and other properties as XML): removal of the properties that are wrong for the result."""

from contextlib import suppress
from typing import Any
from xml.dom import minidom

# XMP properties that describe other parts of the file (depth and gain maps, videos, thumbnails) or its old layout
_FALSE_XMP_NAMESPACES = {
    "http://ns.adobe.com/hdr-gain-map/1.0/",
    "http://ns.adobe.com/xmp/note/",
    "http://ns.google.com/photos/1.0/audio/",
    "http://ns.google.com/photos/1.0/camera/",
    "http://ns.google.com/photos/1.0/container/",
    "http://ns.google.com/photos/1.0/depthmap/",
    "http://ns.google.com/photos/1.0/image/",
    "http://ns.google.com/photos/dd/1.0/device/",
}
_PANORAMA_NAMESPACE = "http://ns.google.com/photos/1.0/panorama/"  # in pixels
_FALSE_XMP_NAMES = {
    *("tiff:Orientation", "tiff:ImageWidth", "tiff:ImageLength", "exif:PixelXDimension", "exif:PixelYDimension"),
    "xmp:Thumbnails",
}
_RDF_NAMESPACE = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_IPTC_NAMESPACE = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_EDITED_BY_A_MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
_EMPTY_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    f'<rdf:RDF xmlns:rdf="{_RDF_NAMESPACE}"><rdf:Description rdf:about=""/></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)


def true_xmp(xmp: Any, is_resized: bool = False) -> tuple[bytes | None, bool]:
    """Return XMP without properties that are wrong for the result, and whether it described no other part of the file.

    Args:
        xmp: The `xmp` of an image's `info`, or None.
        is_resized: Whether the picture was enlarged; the geometry of a panorama is removed then.

    Raises:
        ExpatError, ValueError: The XMP is damaged.
    """
    if not isinstance(xmp, bytes) or not xmp:
        return None, True
    xmp = xmp.strip(b"\0")
    namespaces = _FALSE_XMP_NAMESPACES | ({_PANORAMA_NAMESPACE} if is_resized else set())
    is_whole = not any(namespace.encode() in xmp for namespace in namespaces)
    if is_whole and not any(name.encode() in xmp for name in _FALSE_XMP_NAMES):
        return xmp, True
    document = minidom.parseString(xmp)
    for element in document.getElementsByTagName("*"):
        if _is_false(element, namespaces) and element.parentNode is not None:
            element.parentNode.removeChild(element)
        for attribute in [a for a in element.attributes.values() if _is_false(a, namespaces)]:
            element.removeAttributeNode(attribute)
    return b"".join(node.toxml("utf-8") for node in document.childNodes), is_whole


def mark_as_edited(xmp: Any) -> bytes:
    """Return XMP with the IPTC digital source type of a picture that a trained model has changed.

    Args:
        xmp: The `xmp` of an image's `info`, or None. If it is damaged or of another type, it is replaced.
    """
    document = _parsed(xmp) or minidom.parseString(_EMPTY_XMP)
    descriptions = document.getElementsByTagNameNS(_RDF_NAMESPACE, "Description")
    for element in document.getElementsByTagNameNS(_IPTC_NAMESPACE, "DigitalSourceType"):
        if element.parentNode is not None:
            element.parentNode.removeChild(element)
    for description in descriptions:
        if description.hasAttributeNS(_IPTC_NAMESPACE, "DigitalSourceType"):
            description.removeAttributeNS(_IPTC_NAMESPACE, "DigitalSourceType")
    descriptions[0].setAttribute("xmlns:Iptc4xmpExt", _IPTC_NAMESPACE)
    descriptions[0].setAttributeNS(_IPTC_NAMESPACE, "Iptc4xmpExt:DigitalSourceType", _EDITED_BY_A_MODEL)
    return b"".join(node.toxml("utf-8") for node in document.childNodes)


def _parsed(xmp: Any) -> minidom.Document | None:
    """Return XMP as a document, or None if it has no description."""
    with suppress(Exception):  # minidom raises nearly anything for what is not XML
        document = minidom.parseString(xmp)
        if document.getElementsByTagNameNS(_RDF_NAMESPACE, "Description"):
            return document
    return None


def _is_false(node: Any, namespaces: set[str]) -> bool:
    return node.namespaceURI in namespaces or node.nodeName in _FALSE_XMP_NAMES
