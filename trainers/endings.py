"""Which files are pictures, by the endings of their names."""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from trainers.formatting import printable

PLUGINS: Mapping[str, Sequence[str]] = {"pillow_heif": (".heic", ".heif", ".hif"), "pillow_jxl": (".jxl",)}
"""Module that teaches Pillow to read files -> their endings."""
_PACKAGES = {"pillow_heif": "pillow-heif", "pillow_jxl": "pillow-jxl-plugin"}
"""Module -> what to install."""
_ENDINGS: Sequence[str] = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c", ".tga", ".qoi", ".pcx", ".sgi"),
    *(".pfm", ".bw", ".rgb", ".rgba", ".icb", ".vda", ".vst", ".ras"),
)
_OTHER_DATA = frozenset(
    ".txt .csv .tsv .json .jsonl .geojson .xml .yaml .yml .toml .md .rst .html .htm .py .pyc .ipynb .m .pkl "
    ".pt .pth .ckpt .onnx .safetensors .h5 .hdf5 .log .ini .cfg .sh .bat .zip .tar .gz .tgz .bz2 .xz .7z .rar .db "
    ".sqlite .xls .xlsx .doc .docx .lst .lnk .url .part .tmp .bak .md5 .sha256 .names .data .prj .tfw .jgw .pgw "
    ".aux .ovr .cache .lock .cnt .index".split()
)
"""Endings of files that lie beside pictures, and are none."""


def _readable() -> tuple[str, ...]:
    found = {name: importlib.util.find_spec(name) for name in ("PIL", "pillow_avif", *PLUGINS)}
    parts = [os.listdir(folder) for folder in (found["PIL"] and found["PIL"].submodule_search_locations) or ()]
    avif = found["pillow_avif"] or any(name.startswith("_avif") for names in parts for name in names)
    of_plugins = (ending for name, endings in PLUGINS.items() if found[name] for ending in endings)
    return (*_ENDINGS, *((".avif", ".avifs") if avif else ()), *of_plugins)


SUFFIXES = _readable()
"""Endings of files that are read, in lower case; some need a package that is not installed everywhere."""


def left_out(names: Iterable[str]) -> str | None:
    """What to tell of files that lie among pictures and are not read, but may be some.

    Args:
        names: Their names or paths.

    Returns:
        One sentence with the count of each ending and an example; None: there are no such files.
    """
    endings: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for name in names:
        stem, ending = os.path.splitext(os.path.basename(name))
        ending = ending.lower()
        if ending in SUFFIXES or ending in _OTHER_DATA or stem.startswith(".") or (not ending and stem.isupper()):
            continue
        endings[ending] += 1
        examples.setdefault(ending, printable(name))
    if not endings:
        return None
    each = "; ".join(
        f"{count:,} {ending or 'without an ending'}, such as {examples[ending]}"
        for ending, count in sorted(endings.items(), key=lambda entry: (-entry[1], entry[0]))[:10]
    )
    installs = [_PACKAGES[name] for name, of in PLUGINS.items() if any(ending in endings for ending in of)]
    remedy = f"pip install {' '.join(installs)} lets them be read" if installs else "convert them if they are pictures"
    what = f"{endings.total():,} files are" if endings.total() > 1 else "1 file is"
    return f"{what} left out, as files of such endings are not read: {each}; {remedy}"
