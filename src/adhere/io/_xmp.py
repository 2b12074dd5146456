"""XMP: captions, ratings and others as XML; the properties that become false are removed."""

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


def true_xmp(xmp: Any, is_resized: bool = False) -> tuple[bytes | None, bool]:
    """Return XMP without the properties that are false for this picture alone, and whether it describes no other part.

    Args:
        xmp: The `xmp` of an image's `info`, or None.
        is_resized: Whether the picture was enlarged; the geometry of a panorama is removed then.

    Raises:
        ExpatError, ValueError: It is damaged.
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


def _is_false(node: Any, namespaces: set[str]) -> bool:
    return node.namespaceURI in namespaces or node.nodeName in _FALSE_XMP_NAMES
