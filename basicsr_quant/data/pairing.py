"""Which LR image belongs to which HR image, checked before anything is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from basicsr_quant.data.stores import ImageStore
from basicsr_quant.errors import UserError

Names = tuple[str, str, str | None]


@dataclass(frozen=True, slots=True)
class Pair:
    """One image of a data set.

    Attributes:
        name: Stem of the HR file; without HR, of the LR file less what the template adds.
        lq: Name in the LR store.
        gt: Name in the HR store, or None.
        size: LR (height, width).
        defect: Why it cannot be used, or None.
    """

    name: str
    lq: str
    gt: str | None
    size: tuple[int, int]
    defect: str | None = None


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
) -> tuple[list[Names], list[Pair]]:
    """Return (name, LR name, HR name or None), sorted by name, and the images without a partner.

    Where the template leads to no LR image, one of the HR name with ``lr`` in the place of ``hr`` is taken (PassionSR's
    calibration folders).

    Args:
        gt: HR images, or None for a set without references.
        lq: LR images.
        template: LR name from the HR name, ``{}x4``.
        key: Name of the data set in the options, for error messages.
        same_name_too: Also accept an LR image of the HR image's own name (BasicSR's LMDB layout).

    Returns:
        The pairs, and each image without a partner as a pair whose defect names it and both counts, HR images first.
    """
    before, behind = check_template(template, key)
    if gt is None:
        return sorted((_strip(name, before, behind), name, None) for name in lq.names), []
    available = set(lq.names)
    counts = f"datasets:{key}: {len(gt.names)} HR and {len(lq.names)} LR images"
    pairs: list[Names] = []
    alone: list[Pair] = []
    for name in gt.names:
        partner = f"{before}{name}{behind}"
        if same_name_too and partner not in available:
            partner = name
        if partner not in available and name.replace("hr", "lr") in available:
            partner = name.replace("hr", "lr")
        if partner in available:
            available.remove(partner)
            pairs.append((name, partner, name))
            continue
        alone.append(Pair(name, "", name, (0, 0), f"{counts}; '{gt.path(name)}' has no LR partner "
                          f"'{before}{name}{behind}'; add it, remove the HR image or correct filename_tmpl"))
    alone += [Pair(name, name, None, (0, 0), f"{counts}; '{lq.path(name)}' has no HR partner; add it, remove the LR "
                   "image or correct filename_tmpl") for name in sorted(available)]
    return pairs, alone


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
    names: list[Names], gt: ImageStore | None, lq: ImageStore, scale: int, key: str, lenient: bool = False,
) -> list[Pair]:
    """Read the sizes of all images and compare them: LR must be floor(HR / scale) on both axes.

    Args:
        names: What :func:`pair_names` returned.
        gt: HR images, or None.
        lq: LR images.
        scale: HR pixels per LR pixel.
        key: Name of the data set in the options, for error messages.
        lenient: Keep a pair that does not fit, with its defect, in place of an error.

    Raises:
        UserError: A file is unreadable, or a pair does not fit; the message names both files and both sizes.
    """
    pairs = []
    for name, lq_name, gt_name in names:
        try:
            size = _common_size(lq_name, gt_name, gt, lq, scale, key)
        except UserError as error:
            if not lenient:
                raise
            pairs.append(Pair(name, lq_name, gt_name, (0, 0), str(error)))
        else:
            pairs.append(Pair(name, lq_name, gt_name, size))
    return pairs


def _common_size(
    lq_name: str, gt_name: str | None, gt: ImageStore | None, lq: ImageStore, scale: int, key: str,
) -> tuple[int, int]:
    """Return the LR size of a pair that fits."""
    height, width = lq.size(lq_name)
    if gt is not None and gt_name is not None:
        gt_height, gt_width = gt.size(gt_name)
        if (gt_height // scale, gt_width // scale) != (height, width):
            raise UserError(f"datasets:{key}: HR '{gt.path(gt_name)}' is {gt_height}x{gt_width} and LR "
                            f"'{lq.path(lq_name)}' is {height}x{width} (height x width), not 1/{scale} of it; make "
                            "the LR image again with prepare-data")
    return height, width
