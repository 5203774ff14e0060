"""PassionSR's published option files, which name no ``model_type``, as options of ours."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from basicsr_quant.options.problems import Problems, quoted
from basicsr_quant.options.source import KeyPath, Tree, joined

logger = logging.getLogger("basicsr_quant")

MARK = "quantize_config"
LONGEST_INDEX = 4
_BLOCKS = ("basic_config", "tile_config", "quantize_config")
_LOSSES = {"mse": "MSELoss", "mseloss": "MSELoss", "l2": "MSELoss", "l1": "L1Loss", "l1loss": "L1Loss"}
_TEST_SETS = {
    "RealSR": ("RealSR/test/HR", "RealSR/test/LR/X4", "{}"),
    "DRealSR": ("DRealSR/Test_x4/test_HR", "DRealSR/Test_x4/test_LR", "{}"),
    "DIV2K_val": ("DIV2K/DIV2K_valid_HR", "DIV2K/DIV2K_valid_LR_bicubic/X4", "{}x4"),
}
_STAGES = {"Unet_train": ("unet_let", "unet_bounds"), "encoder_train": ("encoder_let", "encoder_bounds"),
           "decoder_train": ("decoder_let", "decoder_bounds")}
_ALONE = ("alone_let", "alone_bounds")

_DIRECT: dict[str, KeyPath] = {
    "basic_config:seed": ("manual_seed",),
    "basic_config:upscale": ("scale",),
    "basic_config:process_size": ("pipeline", "process_size"),
    "basic_config:align_method": ("pipeline", "color_fix"),
    "basic_config:pretrained_model_name_or_path": ("path", "sd"),
    "basic_config:lora_weights_path": ("path", "osediff"),
    "basic_config:context_embedding_path": ("path", "prompt_embedding"),
    "tile_config:vae_decoder_tiled_size": ("pipeline", "tiles", "vae_decoder"),
    "tile_config:vae_encoder_tiled_size": ("pipeline", "tiles", "vae_encoder"),
    "tile_config:latent_tiled_size": ("pipeline", "tiles", "latent"),
    "tile_config:latent_tiled_overlap": ("pipeline", "tiles", "latent_overlap"),
    "quantize_config:only_Unet": ("quant", "only_unet"),
    "quantize_config:cali_batch_size": ("quant", "calibration", "batch_size"),
    "quantize_config:Unet:quant_ckpt": ("path", "unet_ckpt"),
    "quantize_config:Vae:quant_ckpt": ("path", "vae_ckpt"),
    "quantize_config:Unet:weight_quant_bits": ("quant", "unet", "weight_bits"),
    "quantize_config:Unet:act_quant_bits": ("quant", "unet", "activation_bits"),
    "quantize_config:Vae:weight_quant_bits": ("quant", "vae", "weight_bits"),
    "quantize_config:Vae:act_quant_bits": ("quant", "vae", "activation_bits"),
    "out_dir": ("path", "results_root"),
}
_DEAD = ("basic_config:precision", "basic_config:config", "basic_config:ckpt", "quantize_config:output_modelpath",
         *(f"quantize_config:{part}:{key}" for part in ("Unet", "Vae")
           for key in ("only_weight", "method", "quantype")))
_FIXED: dict[str, Any] = {
    "basic_config:merge_lora": True, "quantize_config:quantize": True,
    **{f"quantize_config:{part}:{key}": False for part in ("Unet", "Vae")
       for key in ("weight_sym", "act_sym", "weight_sign", "act_sign")},
    **{f"quantize_config:{part}:layer_type": "2Dquant" for part in ("Unet", "Vae")},
}


def rebuild(tree: Tree) -> None:
    """Turn a published PassionSR file into options of ours, in place; any other file stays as it is.

    Keys of ours that stand beside the published ones, or came by ``--force_yml``, win. Each published key is mapped,
    dropped with one line because upstream never reads it, or refused because what it asks for does not exist here.

    Raises:
        UserError: A key is unknown, or asks for something that is not there.
    """
    if "model_type" in tree.values or MARK not in tree.values:
        return
    published = {path: value for path, value in _leaves(tree.values, ())
                 if path[0] in (*_BLOCKS, "device", "cali_img_path", "dataset", "out_dir")}
    origins = {path: tree.origin(path) for path in published}
    for key in {path[0] for path in published} | set(_BLOCKS):
        tree.values.pop(key, None)
    _Rebuild(tree, origins).run(published)
    logger.info("%s: taken for PassionSRModel; its keys are mapped to ours", tree.file)


def _leaves(block: dict[str, Any], path: KeyPath) -> list[tuple[KeyPath, Any]]:
    found: list[tuple[KeyPath, Any]] = []
    for key, value in block.items():
        is_block = isinstance(value, dict) and value and key != "scheduler"
        found += _leaves(value, (*path, key)) if is_block else [((*path, key), value)]
    return found


class _Rebuild:
    """Puts keys of ours into a tree."""

    def __init__(self, tree: Tree, origins: dict[KeyPath, str]) -> None:
        self.tree, self.origins = tree, origins
        self.alone = False

    def run(self, published: dict[KeyPath, Any]) -> None:
        """Map all keys."""
        self.alone = bool(published.get((MARK, "only_Unet"), False))
        origin = self.tree.file
        self.put(("name",), Path(self.tree.file).stem, origin)
        self.put(("model_type",), "PassionSRModel", origin)
        special: dict[str, Callable[[KeyPath, Any], None]] = {
            "device": self.device, "cali_img_path": self.calibration, "dataset": self.test_sets}
        for path, value in published.items():
            key = joined(path)
            if key in _DIRECT:
                if value is not None:
                    self.put(_DIRECT[key], value, self.origins[path])
            elif key in _DEAD:
                logger.warning("%s: '%s' is ignored: the published code never reads it, or it is not needed here",
                               self.origins[path], key)
            elif key in _FIXED:
                self.fixed(path, value, _FIXED[key])
            elif key in special:
                special[key](path, value)
            elif path[-1] in ("split", "s_alpha") and path[1] in ("Unet", "Vae"):
                self.part(path, value)
            elif path[0] == MARK and len(path) > 1:
                self.stage(path, value)
            else:
                raise self.unknown(path)
        self.put(("scale",), 4, origin)
        self.put(("val", "save_img"), True, origin)

    def put(self, path: KeyPath, value: Any, origin: str) -> None:
        """Set a key unless it is there."""
        block = self.tree.block(path[:-1]) or {}
        if block.get(path[-1]) is None:
            self.tree.put(path, value, origin)

    def unknown(self, path: KeyPath) -> Exception:
        """Return the error of a key that published files do not have."""
        return self.problems(path).unknown(path, [key.rpartition(":")[2] for key in (*_DIRECT, *_DEAD, *_FIXED)])

    def problems(self, path: KeyPath) -> Problems:
        """Return what makes errors, the place of a published key known."""
        self.tree.origins[path] = self.origins[path]
        return Problems(self.tree)

    def fixed(self, path: KeyPath, value: Any, wanted: Any) -> None:
        """Accept the one value that there is."""
        if value != wanted:
            raise self.problems(path).error(path, f"'{joined(path)}' is {quoted(value)}; only {quoted(wanted)} is "
                                                  "offered, as in all published files")

    def device(self, path: KeyPath, value: Any) -> None:
        """``cpu`` or ``cuda:N``."""
        kind, _, number = str(value).partition(":")
        if kind not in ("cpu", "cuda") or (number and not (number.isdecimal() and len(number) <= LONGEST_INDEX)):
            raise self.problems(path).error(path, f"'device' must be cpu, cuda or cuda:N, not {quoted(value)}")
        self.put(("num_gpu",), 0 if kind == "cpu" else 1, self.origins[path])
        if number:
            self.put(("gpu",), int(number), self.origins[path])

    def calibration(self, path: KeyPath, value: Any) -> None:
        """A folder with ``lr`` and ``hr``; a file that has it is for training."""
        if not isinstance(value, str):
            raise self.problems(path).wrong(path, str, value)
        for key, entry in {"name": "calibration", "dataroot_lq": f"{value}/lr", "dataroot_gt": f"{value}/hr"}.items():
            self.put(("datasets", "train", key), entry, self.origins[path])
        if self.tree.values.get("train") is None:
            self.tree.put(("train",), {}, self.origins[path])

    def test_sets(self, path: KeyPath, value: Any) -> None:
        """Names of the published test sets."""
        for number, name in enumerate(value if isinstance(value, list) else [value], 1):
            if not isinstance(name, str) or name not in _TEST_SETS:
                raise self.problems(path).error(path, f"'dataset' must name {', '.join(_TEST_SETS)}, "
                                                      f"not {quoted(name)}")
            hr, lr, template = _TEST_SETS[name]
            root = "datasets/benchmark/"
            self.put(("datasets", f"test_{number}"), {
                "name": name, "dataroot_gt": root + hr, "dataroot_lq": root + lr, "filename_tmpl": template,
                "optional": True}, self.origins[path])

    def part(self, path: KeyPath, value: Any) -> None:
        """What the plan says of one network."""
        if path[-1] == "split":
            self.put(("quant", path[1].lower(), "split"), "half" if value else "none", self.origins[path])
        else:
            self.put(("quant", "let", "alpha"), value, self.origins[path])

    def stage(self, path: KeyPath, value: Any) -> None:
        """How a network is trained: the flat keys of UNet-only files, or a block for each part."""
        flat = len(path) == 2
        stages = _ALONE if flat else _STAGES.get(path[1], ())
        key = path[-1].removeprefix("cali_")
        origin = self.origins[path]
        if not stages or len(path) > 3:
            raise self.unknown(path)
        if key == "epochs":
            self.put(("train", "epochs"), value, origin)
        elif key == "save_interval":
            logger.warning("%s: '%s' is ignored; logger:save_checkpoint_freq says when checkpoints are saved", origin,
                           joined(path))
        elif key == "loss_function":
            self.put(("train", "pixel_opt"), {"type": _LOSSES.get(str(value).lower(), value)}, origin)
        elif key == "learning_rate":
            for stage in stages:
                self.put(("train", "stages", stage, "optim"), {"type": "Adam", "lr": value}, origin)
        elif key == "scheduler":
            self.scheduler(path, stages, value)
        else:
            raise self.unknown(path)

    def scheduler(self, path: KeyPath, stages: tuple[str, ...], value: Any) -> None:
        """A block with ``gamma``: the factor after the first of two epochs; anything else leaves the preset's."""
        gamma = value.get("gamma") if isinstance(value, dict) else None
        others = sorted(set(value) - {"gamma"}) if isinstance(value, dict) else []
        if others:
            logger.warning("%s: '%s' is ignored but for gamma: %s", self.origins[path], joined(path), ", ".join(others))
        if gamma is None:
            logger.info("%s: '%s' is taken for train:stages:*:decay of the preset", self.origins[path], joined(path))
            return
        for stage in stages:
            self.put(("train", "stages", stage, "decay"), gamma, self.origins[path])
