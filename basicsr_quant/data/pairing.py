"""Which LR image belongs to which HR image, checked before anything is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from basicsr_quant.data.stores import ImageStore
from basicsr_quant.errors import UserError

Names = tuple[str, str, str | None]


@dataclass(frozen=True)
class Pair:
    """One image of a data set.

    Attributes:
        name: Stem of the HR file; without HR, of the LR file less what the template adds.
        lq: Name in the LR store.
        gt: Name in the HR store, or None.
        size: LR (height, width).
    """

    name: str
    lq: str
    gt: str | None
    size: tuple[int, int]


def check_template(template: str, key: str) -> tuple[str, str]:
    """Return what a filename template puts before and behind the stem.

    Raises:
        UserError: The template does not hold ``{}`` exactly once.
    """
    parts = template.split("{}")
    if len(parts) != 2:
        raise UserError(f"datasets:{key}:filename_tmpl: '{template}' must hold {{}} once, where the HR name goes "
                        "(as in '{}x4')")
    return parts[0], parts[1]


def pair_names(
    gt: ImageStore | None, lq: ImageStore, template: str, key: str, same_name_too: bool,
) -> list[Names]:
    """Return (name, LR name, HR name or None), sorted by name.

    Where the template leads to no LR image, one of the HR name with ``lr`` in the place of ``hr`` is taken (PassionSR's
    calibration folders).

    Args:
        gt: HR images, or None for a set without references.
        lq: LR images.
        template: LR name from the HR name, ``{}x4``.
        key: Name of the data set in the options, for error messages.
        same_name_too: Also accept an LR image of the HR image's own name (BasicSR's LMDB layout).

    Raises:
        UserError: An image has no partner; the message names it and both counts.
    """
    before, behind = check_template(template, key)
    if gt is None:
        return sorted((_strip(name, before, behind), name, None) for name in lq.names)
    available = set(lq.names)
    counts = f"datasets:{key}: {len(gt.names)} HR and {len(lq.names)} LR images"
    pairs: list[Names] = []
    for name in gt.names:
        partner = f"{before}{name}{behind}"
        if same_name_too and partner not in available:
            partner = name
        if partner not in available and name.replace("hr", "lr") in available:
            partner = name.replace("hr", "lr")
        if partner not in available:
            raise UserError(f"{counts}; '{gt.path(name)}' has no LR partner '{before}{name}{behind}'; add it, remove "
                            "the HR image or correct filename_tmpl")
        available.remove(partner)
        pairs.append((name, partner, name))
    if available:
        spare = min(available)
        raise UserError(f"{counts}; '{lq.path(spare)}' has no HR partner; add it, remove the LR image or correct "
                        "filename_tmpl")
    return pairs


def _strip(name: str, before: str, behind: str) -> str:
    inner = name.removeprefix(before).removesuffix(behind)
    return inner if inner and f"{before}{inner}{behind}" == name else name


def select(names: list[Names], exclude_last: int, only_last: int, key: str) -> list[Names]:
    """Leave out the last ``exclude_last`` of the sorted names, or take only the last ``only_last`` (0 = all).

    Raises:
        UserError: Both are given, or nothing remains.
    """
    if exclude_last and only_last:
        raise UserError(f"datasets:{key}: exclude_last and only_last are both set; use one in each data set")
    if max(exclude_last, only_last) > len(names) or exclude_last == len(names):
        option = "exclude_last" if exclude_last else "only_last"
        raise UserError(f"datasets:{key}:{option}: {max(exclude_last, only_last)} of {len(names)} images; choose a "
                        "smaller number")
    if only_last:
        return names[-only_last:]
    return names[:len(names) - exclude_last]


def check_sizes(
    names: list[Names], gt: ImageStore | None, lq: ImageStore, scale: int, key: str,
) -> list[Pair]:
    """Read the sizes of all images and compare them: LR must be floor(HR / scale) on both axes.

    Raises:
        UserError: A pair does not fit; the message names both files and both sizes.
    """
    pairs = []
    for name, lq_name, gt_name in names:
        height, width = lq.size(lq_name)
        if gt is not None and gt_name is not None:
            gt_height, gt_width = gt.size(gt_name)
            if (gt_height // scale, gt_width // scale) != (height, width):
                raise UserError(f"datasets:{key}: HR '{gt.path(gt_name)}' is {gt_height}x{gt_width} and LR "
                                f"'{lq.path(lq_name)}' is {height}x{width} (height x width), not 1/{scale} of it; make "
                                "the LR image again with prepare-data")
        pairs.append(Pair(name, lq_name, gt_name, (height, width)))
    return pairs
