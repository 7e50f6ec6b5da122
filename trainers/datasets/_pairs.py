"""Pictures and their masks: which files belong together, by their names.

A pattern says what is around the part of a name that picture and mask share: {name}_leftImg8bit and
{name}_gtFine_labelIds. Folders and endings aside; both lie equally deep: `a/1.jpg` and `a/1.png`.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from trainers.datasets import MASK, Args, Item
from trainers.datasets._files import assign_splits
from trainers.formatting import composed, printable, shortened
from trainers.listing import is_picture, list_folder, walk

Pair = tuple[str, str]
"""A picture and its mask, as paths below the data folder."""
LISTED = 20
"""Files that a message names."""
TRIED = 5
"""Pictures from whose names patterns are guessed."""
NEARLY = 0.8
"""Share of the pictures for which a pattern finds masks, from which on the rest is named as lacking them."""
HOLE = "{name}"


class Pattern(NamedTuple):
    """What is around the shared part of a file's name."""

    before: str = ""
    after: str = ""

    def key(self, stem: str) -> str | None:
        """The folder and the shared part of `a/x_mask`; None where the name is of another form."""
        folder, mark, name = composed(stem).rpartition("/")
        inner = name[len(self.before) : len(name) - len(self.after)]
        fits = name.startswith(self.before) and name.endswith(self.after) and inner
        return f"{folder}{mark}{inner}" if fits and len(name) > len(self.before) + len(self.after) else None

    def __str__(self) -> str:
        text = f"{self.before}{HOLE}{self.after}"
        return f"{text}.*" if is_picture(text) else text  # of x.jpg.png, as one may give it


SAME = Pattern()


def pattern_of(argument: str, text: str) -> Pattern:
    """Read {name}_mask. Raises ValueError, which names the argument."""
    bare = os.path.splitext(text)[0] if is_picture(text) or text.endswith(".*") else text
    before, hole, after = bare.partition(HOLE)
    if not hole or HOLE in after or "/" in bare:
        raise ValueError(
            f"{argument}={text} is not allowed; give what is around the part of the name that picture and mask share, "
            f"as in {argument}={HOLE}_mask, without folder and ending"
        )
    return Pattern(composed(before), composed(after))


def need_folders(root: str, folders: Sequence[str], holds: str) -> None:
    """Raises ValueError for folders that are not there, saying what is."""
    missing = [folder for folder in folders if not os.path.isdir(os.path.join(root, folder))]
    if missing:
        listing = list_folder(root)
        held = sorted([*listing.folders, *listing.pictures, *listing.others])
        raise ValueError(
            f"{printable(root)} lacks the folder{'s' * (len(missing) > 1)} {', '.join(missing)} "
            f"(it holds {shortened(held) or 'nothing'}); give --data a folder that holds {holds}"
        )


class _Matched(NamedTuple):
    """Pictures and masks as patterns bring them together."""

    pairs: list[Pair]
    """In the order of the pictures."""
    without: list[str]
    """Pictures without a mask."""
    left: list[str]
    """Masks without a picture."""
    twice: list[str]
    """Files of one name."""

    @property
    def clean(self) -> bool:
        return not (self.without or self.left or self.twice)


def find_pairs(
    root: str,
    pictures: str,
    masks: str,
    *,
    picture_pattern: Pattern = SAME,
    mask_patterns: Sequence[Pattern] = (SAME,),
) -> list[Pair]:
    """Each picture in the folder `pictures` and its mask in the folder `masks`, sorted by the pictures' names.

    Args:
        root: The folder that holds both.
        pictures: Folder of the pictures, below `root`.
        masks: Folder of the masks, below `root`.
        picture_pattern: Pictures of other names are skipped.
        mask_patterns: Likewise, of masks; of several the first counts that makes the name of a picture.

    Returns:
        (picture, mask) as paths below `root`.

    Raises:
        ValueError: Pictures or masks are left over, or names occur twice; it lists them.
    """
    drawn, found = _list(root, pictures, picture_pattern), walk(root, masks).pictures
    matched = _match(drawn, found, pictures, masks, picture_pattern, mask_patterns)
    if not matched.clean:
        raise ValueError(_report(root, pictures, masks, matched, picture_pattern, mask_patterns))
    return matched.pairs


def guess_pairs(root: str, pictures: str, masks: str, usual: Sequence[Pattern]) -> tuple[list[Pair], list[str]]:
    """As `find_pairs`; where the names are not the usual ones, by patterns that all files have.

    Args:
        root, pictures, masks: The folders.
        usual: Patterns of masks.

    Returns:
        The pairs, and what to say of them.

    Raises:
        ValueError: No pattern fits, or several do.
    """
    drawn, found = _list(root, pictures, SAME), walk(root, masks).pictures
    matched = _match(drawn, found, pictures, masks, SAME, usual)
    if matched.clean:
        return matched.pairs, []
    fitting: dict[tuple[Pair, ...], tuple[Pattern, Pattern]] = {}
    stems = [_stem(path, pictures) for path in drawn], [_stem(path, masks) for path in found]
    best: tuple[_Matched, Pattern, Sequence[Pattern]] = (matched, SAME, usual)
    for of_picture, of_mask in _candidates(*stems):
        each = _match(drawn, found, pictures, masks, of_picture, [of_mask])
        if not (each.without or each.twice) and len(each.pairs) == len(drawn):
            fitting.setdefault(tuple(each.pairs), (of_picture, of_mask))
        elif len(each.pairs) > max(len(best[0].pairs), NEARLY * len(drawn)):
            best = (each, of_picture, [of_mask])
    if not fitting:
        named = f"or say how both are named: --dataset-args picture_pattern=img_{HOLE} mask_pattern={HOLE}_label"
        raise ValueError(f"{_report(root, pictures, masks, *best)}, {named}")
    asked = " or ".join(f"picture_pattern={one} mask_pattern={other}" for one, other in fitting.values())
    if len(fitting) > 1:
        raise ValueError(
            f"{printable(os.path.join(root, masks))} holds {len(fitting)} masks for each picture in {pictures}; say "
            f"which: --dataset-args {asked}"
        )
    [(pairs, (of_picture, of_mask))] = fitting.items()
    left = sorted(set(found) - {mask for _, mask in pairs})
    if left:
        other = all(of_mask.key(_stem(mask, masks)) is None for mask in left)
        raise ValueError(
            f"{len(left)} masks in {masks} without a picture in {pictures}: {shortened(left, LISTED)}. Remove them"
            + (
                f", or leave them out by --dataset-args {asked}"
                if other
                else f", or add the pictures, named {of_picture}"
            )
        )
    return list(pairs), [
        f"the mask of {of_picture} is taken to be {of_mask}, as all names in {pictures} and {masks} are"
    ]


def assign_pairs(
    root: str, pairs: Sequence[Pair], *, val_share: float, test_share: float = 0.0, split_seed: int
) -> dict[str, list[Pair]]:
    """Assign pairs to splits at random.

    Args:
        root: Names the folder in errors.
        pairs: All pairs of the data set.
        val_share: Share of the pairs, above 0.
        test_share: Likewise; 0: there is no such split.
        split_seed: 0 to 2**32 - 1.

    Returns:
        Split name -> its pairs, in their order.

    Raises:
        ValueError: Shares or seed are out of range, or a split is empty.
    """
    labels = [0] * len(pairs)
    assigned = assign_splits(labels, val_share=val_share, test_share=test_share, seed=split_seed, what=printable(root))
    return {split: [pairs[position] for position in positions] for split, positions in assigned.items()}


def mask_items(root: str, pairs: Sequence[Pair], args: Args) -> list[Item]:
    """One item a pair."""
    return [
        Item(path=f"{root}/{picture}", mask_path=f"{root}/{mask}", name=picture, targets=[MASK], args=args)
        for picture, mask in pairs
    ]


# ---- names ----


def _list(root: str, folder: str, pattern: Pattern) -> list[str]:
    """The pictures in a folder whose names are of a form. Raises ValueError where there are none."""
    found = [path for path in walk(root, folder).pictures if pattern.key(_stem(path, folder))]
    if not found:
        named = f" named {pattern.before}*{pattern.after}.*" if pattern != SAME else ""
        raise ValueError(f"{printable(os.path.join(root, folder))} holds no pictures{named}; add some")
    return found


def _stem(path: str, folder: str) -> str:
    """The path below `folder`, without the ending."""
    return os.path.splitext(path[len(folder) + 1 :] if folder else path)[0]


def _match(
    drawn: Sequence[str],
    found: Sequence[str],
    pictures: str,
    masks: str,
    of_picture: Pattern,
    of_masks: Sequence[Pattern],
) -> _Matched:
    by_key: dict[str, list[str]] = {}
    for path in drawn:
        if key := of_picture.key(_stem(path, pictures)):
            by_key.setdefault(key, []).append(path)
    its: dict[str, list[str]] = {}
    left = []
    for path in found:
        stem = _stem(path, masks)
        keys = [key for key in (pattern.key(stem) for pattern in of_masks) if key]
        fitting = [key for key in keys if key in by_key] or keys
        if fitting:
            its.setdefault(fitting[0], []).append(path)
            left += [path] if fitting[0] not in by_key else []
    return _Matched(
        pairs=[(paths[0], its[key][0]) for key, paths in by_key.items() if key in its],
        without=[paths[0] for key, paths in by_key.items() if key not in its],
        left=left,
        twice=[" and ".join(paths) for paths in (*by_key.values(), *its.values()) if len(paths) > 1],
    )


def _report(
    root: str, pictures: str, masks: str, matched: _Matched, of_picture: Pattern, of_masks: Sequence[Pattern]
) -> str:
    count = len(matched.pairs) + len(matched.without)
    problems = [
        f"{len(names)} {what}: {shortened(names, LISTED)}"
        for names, what in (
            (matched.without, f"of {count} pictures in {pictures} without a mask in {masks}"),
            (matched.left, f"masks in {masks} without a picture in {pictures}"),
            (matched.twice, "times two files of one name"),
        )
        if names
    ]
    example = " or ".join(f"{pattern.before}x{pattern.after}.png" for pattern in of_masks)
    return (
        f"pictures and masks in {printable(root)} do not fit: {'; '.join(problems)}. The mask of "
        f"{of_picture.before}x{of_picture.after}.jpg is {example}; add, rename or remove files"
    )


def _candidates(pictures: Sequence[str], masks: Sequence[str]) -> Iterator[tuple[Pattern, Pattern]]:
    """Patterns by which the masks of some pictures may be named, those first that take the least away."""
    names = [composed(stem).rpartition("/")[2] for stem in pictures]
    befores = _cuts(common_start(names))
    afters = [cut[::-1] for cut in _cuts(common_start([name[::-1] for name in names]))]
    held = dict.fromkeys(sorted(map(composed, masks)))
    seen: set[tuple[Pattern, Pattern]] = set()
    for of_picture in sorted((Pattern(b, a) for b in befores for a in afters), key=_taken_away):
        keys = [key.rpartition("/") for key in map(of_picture.key, pictures[:TRIED]) if key]
        for (folder, mark, inner), mask in itertools.product(keys, held):
            name = mask.removeprefix(folder + mark)
            for place in re.finditer(re.escape(inner), "" if "/" in name else name):
                of_mask = Pattern(name[: place.start()], name[place.end() :])
                if (of_picture, of_mask) in seen or not _whole(of_mask, inner):
                    continue
                seen.add((of_picture, of_mask))
                of_tried = [f"{where}{slash}{of_mask.before}{part}{of_mask.after}" for where, slash, part in keys]
                if 2 * sum(stem in held for stem in of_tried) > len(pictures[:TRIED]):
                    yield of_picture, of_mask


def _taken_away(pattern: Pattern) -> tuple[int, int]:
    """Few letters and digits, but what separates them."""
    text = pattern.before + pattern.after
    return sum(map(str.isalnum, text)), -len(text)


def common_start(names: Sequence[str]) -> str:
    """The beginning that all names share."""
    first, last = min(names), max(names)
    return next((first[:end] for end, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), first)


def _cuts(text: str) -> list[str]:
    """The beginnings of a text that end where a word or a number does."""
    return [text[:end] for end in range(len(text) + 1) if end == 0 or not _joined(text[end - 1], text[end : end + 1])]


def _whole(pattern: Pattern, inner: str) -> bool:
    """Whether the shared part is cut from the rest where words and numbers end."""
    return not _joined(pattern.before[-1:], inner[0]) and not _joined(inner[-1], pattern.after[:1])


def _joined(left: str, right: str) -> bool:
    return (left.isdigit() and right.isdigit()) or (left.isalpha() and right.isalpha())
