"""Files and formats that the other packages share: folders, buckets, digests, strict JSON.

This package imports neither JAX nor any other package of the project.
"""

from __future__ import annotations

from .atomic import atomic_file, atomic_folder, write_atomic
from .bucket_paths import BucketPath, as_path
from .digests import sha256_hex, sha256_of_chunks, sha256_of_file
from .figures import PALETTE, pdf_bytes, png_bytes, svg_bytes
from .folders import folder_lock, name_os_errors, prepare_folder
from .json_document import DocumentError, Node, load_document, parse_document
from .locations import Location, parse_location
from .object_stores import check_readable, check_writable
from .outputs import output_folder, prepare_file, prepare_new_folder
from .strict_json import format_document, format_line, null_non_finite
from .versions import release_version

__all__ = [
    "PALETTE",
    "BucketPath",
    "DocumentError",
    "Location",
    "Node",
    "as_path",
    "atomic_file",
    "atomic_folder",
    "check_readable",
    "check_writable",
    "folder_lock",
    "format_document",
    "format_line",
    "load_document",
    "name_os_errors",
    "null_non_finite",
    "output_folder",
    "parse_document",
    "parse_location",
    "pdf_bytes",
    "png_bytes",
    "prepare_file",
    "prepare_folder",
    "prepare_new_folder",
    "release_version",
    "sha256_hex",
    "sha256_of_chunks",
    "sha256_of_file",
    "svg_bytes",
    "write_atomic",
]


def __dir__() -> list[str]:
    return sorted(__all__)
