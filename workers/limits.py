"""How much of anything is read before it is refused: no real file comes near these.

Every limit holds before memory is taken or time is spent. Going over one raises `Exceeded` with the
limit's code, and the file goes to quarantine (docs/limits.md is this table for people).
"""

from __future__ import annotations

from dataclasses import dataclass

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


@dataclass(frozen=True, slots=True)
class Limit:
    """One bound: what may be at most how many, and why that is enough."""

    code: str
    """The code of the error."""
    maximum: int
    what: str
    """The sentence that a number of `unit` ends: "the data set has"."""
    unit: str
    why: str


# headers ------------------------------------------------------------------------------------------

ELEMENTS = Limit(
    "too-many-elements", 400_000, "the data set has", "elements",
    "an enhanced PET of 5,000 frames has some 300,000, all levels counted",
)  # fmt: skip
ITEMS = Limit(
    "too-many-items", 250_000, "the sequences that are read have", "items",
    "5,000 frames have some 75,000; each one decoded takes 0.7 KB",
)  # fmt: skip
DEPTH = Limit(
    "nested-too-deep", 40, "sequences are nested", "levels deep",
    "structured reports go to some 15; Python and pydicom recurse",
)  # fmt: skip
VALUE = Limit(
    "value-too-long", 64 * KIB, "a value that is read has", "bytes",
    "the longest one that is read, a description, may have 64 characters (PS3.5 6.2)",
)  # fmt: skip
IDENTIFIER = Limit(
    "identifier-too-long", KIB, "an identifier has", "bytes",
    "one may have 64 characters (PS3.5 6.2); PostgreSQL indexes no value of over 2.7 KB",
)  # fmt: skip
KEPT = Limit(
    "header-too-large", 64 * MIB, "the elements that are read have together", "bytes",
    "the functional groups of 5,000 frames have some 15 MB",
)  # fmt: skip
INFLATED = Limit(
    "inflates-too-far", 512 * MIB, "the deflated data set inflates to", "bytes",
    "it is held in memory, and zlib makes 1 GB of 1 MB; what is deflated is reports and masks",
)  # fmt: skip
HEADERS = (ELEMENTS, ITEMS, DEPTH, VALUE, IDENTIFIER, KEPT, INFLATED)

# pixels -------------------------------------------------------------------------------------------

WHOLE_FILE = Limit(
    "file-too-large", 2 * GIB, "a file that must be read whole has", "bytes",
    "pixels are decoded from memory; an enhanced CT of 2,000 slices has 1 GB",
)  # fmt: skip
FRAME = Limit(
    "frame-too-large", 256 * MIB, "one decoded frame would have", "bytes",
    "a mammogram has 40 MB; 65,535 x 65,535 pixels of 16 bits have 8 GB",
)  # fmt: skip
PIXELS = Limit(
    "pixels-too-large", 4 * GIB, "the decoded frames would have together", "bytes",
    "frames are decoded one by one: this bounds the time",
)  # fmt: skip
TILES = Limit(
    "too-many-tiles", 4096, "a JPEG 2000 frame has", "tiles",
    "a decoder takes some 6 KB for each before it has read it",
)  # fmt: skip
PIXEL_DATA = (WHOLE_FILE, FRAME, PIXELS, TILES)

# archives -----------------------------------------------------------------------------------------

MEMBERS = Limit(
    "too-many-members", 1_000_000, "the archive has", "members",
    "a whole-body PET/CT has some 3,000; the names of a million take 100 MB",
)  # fmt: skip
MEMBER = Limit(
    "member-too-large", 8 * GIB, "a member has", "bytes",
    "one element of a data set has at most 4 GiB (PS3.5 7.1.1)",
)  # fmt: skip
UNPACKED = Limit(
    "unpacks-too-far", TIB, "the archive unpacks to", "bytes",
    "what arrives in one archive came over a network; the room of the spool is asked besides",
)  # fmt: skip
RATIO = Limit(
    "compressed-too-well", 250, "the archive unpacks to", "times its size",
    "images pack 2 to 10 times, empty ones seldom come alone; the first 64 MiB are free",
)  # fmt: skip
NESTED = Limit(
    "archives-too-deep", 4, "archives are in each other", "levels deep",
    "a session's archive in a subject's archive in a delivery",
)  # fmt: skip
MEMBER_HEADER = Limit(
    "member-header-too-large", 64 * KIB, "the headers before a member of a tar have", "bytes",
    "a path has at most 4 KiB",
)  # fmt: skip
DIRECTORY = Limit(
    "directory-too-large", 32 * MIB, "the directory of a zip has", "bytes",
    "it is held in memory; this is some 300,000 members",
)  # fmt: skip
INNER_ZIP = Limit(
    "inner-zip-too-large", 4 * GIB, "a zip inside an archive has", "bytes",
    "its directory is at its end, so it is laid on disk first",
)  # fmt: skip
ARCHIVES = (MEMBERS, MEMBER, UNPACKED, RATIO, NESTED, MEMBER_HEADER, DIRECTORY, INNER_ZIP)
