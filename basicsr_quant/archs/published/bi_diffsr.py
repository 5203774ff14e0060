"""State dicts of BI-DiffSR as published, to and from our own names: dicts in, dicts out."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from basicsr_quant.errors import UserError

State = dict[str, Tensor]
Rules = list[tuple[re.Pattern[str], str]]

_PUBLISHED_AND_OURS = [
    (r"timestep_level_mlp.1", r"time_embedding.hidden"),
    (r"timestep_level_mlp.3", r"time_embedding.output"),
    (r"final_conv.block.0", r"final.norm"),
    (r"final_conv.block.3", r"final.conv"),
    (r"res_block.timestep_func.1", r"time"),
    (r"res_block.block1.block.0", r"block1.norm"),
    (r"res_block.block2.block.0", r"block2.norm"),
    (r"res_block.block1.conv", r"block1.conv"),
    (r"res_block.block2.conv", r"block2.conv"),
    (r"attn", r"attention"),
    (r"biconv1", r"branch1"),
    (r"biconv2", r"branch2"),
    (r"biconv_1", r"fuse1"),
    (r"biconv_2", r"fuse2"),
    (r"binary_conv", r"binary"),
    (r"pr_bias0.bias", r"shift_in"),
    (r"pr_prelu.weight", r"slope"),
    (r"pr_bias1.bias", r"shift_out"),
]


def _rules(pairs: list[tuple[str, str]]) -> Rules:
    """Return substitutions of whole parts of names."""
    return [(re.compile(rf"(^|(?<=\.)){re.escape(old)}(?=\.|$)"), new) for old, new in pairs]


_TO_OURS: Rules = [*_rules(_PUBLISHED_AND_OURS),
                   (re.compile(r"(^|(?<=\.))TaR\.dynamic_move_(\d+)(?=\.)"), r"shift.members.\2"),
                   (re.compile(r"(^|(?<=\.))TaA\.dynamic_relu_(\d+)(?=\.)"), r"activation.members.\2")]
_TO_PUBLISHED: Rules = [*_rules([(ours, published) for published, ours in _PUBLISHED_AND_OURS]),
                        (re.compile(r"(^|(?<=\.))shift\.members\.(\d+)(?=\.)"), r"TaR.dynamic_move_\2"),
                        (re.compile(r"(^|(?<=\.))activation\.members\.(\d+)(?=\.)"), r"TaA.dynamic_relu_\2")]
_GROUP = re.compile(r"(?:^|\.)(shift|activation)\.members\.(\d+)\.")
_OPTION = "network_g:dynamic_group"


def _rename(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = pattern.sub(replacement, name)
    return name


def import_bi_diffsr(state: Mapping[str, Tensor]) -> State:
    """Turn a published state dict, or a part of one, into ours.

    A leading ``module.`` is dropped; slopes become (1, C, 1, 1) like their neighbours.

    Source: BI-DiffSR specification 7.
    """
    ours: State = {}
    for name, tensor in state.items():
        renamed = _rename(name.removeprefix("module."), _TO_OURS)
        ours[renamed] = tensor.view(1, -1, 1, 1) if renamed.rpartition(".")[2] == "slope" else tensor
    return ours


def export_bi_diffsr(state: Mapping[str, Tensor]) -> State:
    """Turn our state dict into the published one, in the same order."""
    return {_rename(name, _TO_PUBLISHED): tensor.flatten() if name.rpartition(".")[2] == "slope" else tensor
            for name, tensor in state.items()}


def count_groups(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Return how many timestep groups a state of ours has: ``shift`` (TaR) and ``activation`` (TaA) -> number."""
    counts: dict[str, int] = {}
    for name in state:
        found = _GROUP.search(name)
        if found:
            kind, group = found[1], int(found[2])
            counts[kind] = max(counts.get(kind, 0), group + 1)
    return counts


def check_groups(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: object) -> None:
    """Compare the numbers of timestep groups of a file and of the network that is to take it.

    Args:
        state: The file's, in our names.
        expected: The network's ``state_dict()``.
        path: Names the file in the message.

    Raises:
        UserError: They differ.
    """
    stored, wanted = count_groups(state), count_groups(expected)
    if stored == wanted or not stored:
        return

    def words(counts: Mapping[str, int]) -> str:
        return f"{counts.get('shift', 0)} before the sign and {counts.get('activation', 0)} behind the convolution"

    raise UserError(f"{path}: its timestep groups number {words(stored)}, those of the network {words(wanted)}; set "
                    f"{_OPTION}={max(stored.values())} (and network_g:timestep_aware) to match the file")
