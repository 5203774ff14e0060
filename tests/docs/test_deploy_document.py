"""docs/deploy.md: its code runs on a packed file, its numbers and messages are those of the program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from document_reader import REPOSITORY, blocks, error_fragments, package_source, table_rows

from basicsr_quant.deploy.pack import pack
from basicsr_quant.deploy.runtimes.base import AUTO
from basicsr_quant.deploy.unpack import unpack
from basicsr_quant.models.tdquant import TDQuantModel
from basicsr_quant.options.load import load_options
from basicsr_quant.quant.accounting import Account, account
from basicsr_quant.quant.calibrate import named_quantizers
from basicsr_quant.registry import MODELS, QUANTIZERS, RUNTIMES

DOCUMENT = REPOSITORY / "docs" / "deploy.md"
OPTIONS = REPOSITORY / "options/test/test_2DQuant_x4.yml"
FILE = "SwinIR_light_x4_bit4.safetensors"


@pytest.fixture(scope="module")
def packed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packed file that the document talks about, of random weights."""
    folder = tmp_path_factory.mktemp("deploy")
    options = load_options(OPTIONS, ["bit=4", "num_gpu=0"], is_train=False)
    torch.manual_seed(0)
    model = MODELS.build(options.model_type, options, torch.device("cpu"))
    network = TDQuantModel.skeleton(options)
    for number, (_, quantizer) in enumerate(named_quantizers(network)):
        quantizer.set_bounds(torch.tensor(-1.0 - number / 1000), torch.tensor(1.0 + number / 500))
    model.adopt(network.eval().requires_grad_(False))
    (folder / FILE).write_bytes(pack(model)[0])
    return folder


def test_the_code_runs(packed_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(packed_folder)
    from_python, reader = blocks(DOCUMENT, "python")
    names: dict[str, Any] = {}
    exec(from_python, names)
    assert names["restored"].shape == (1, 3, 96, 80)
    assert (packed_folder / "SwinIR_light_x4_bit4/config.json").is_file()
    names = {}
    exec(reader, names)
    network = unpack(packed_folder / FILE).network
    layer: Any = network.get_submodule("layers.0.residual_group.blocks.0.attn.qkv.parts.0")
    torch.testing.assert_close(torch.from_numpy(names["weight"]).float(), layer.decoded_weight(), rtol=0, atol=1e-6)
    assert names["facts"]["options"]["bit"] == 4


def test_tables_are_true() -> None:
    assert {row[0].strip("`") for row in table_rows(DOCUMENT, "Runtimes", "backend")} == {AUTO, *RUNTIMES}
    grids = [row[0].strip("`") for row in table_rows(DOCUMENT, "The file", "grid")]
    assert grids == sorted(QUANTIZERS)
    for name, full, half in table_rows(DOCUMENT, "Pack", "model")[:3]:
        counted = swinir_light(int(name.split()[-2]))
        float_rest = counted.total_parameters - counted.quantized_parameters
        assert (full, half) == (f"{counted.packed_bytes:,}", f"{counted.packed_bytes - 2 * float_rest:,}")


def swinir_light(bit: int) -> Account:
    options = load_options(OPTIONS, [f"bit={bit}"], is_train=False)
    with torch.device("meta"):
        return account(MODELS.get(options.model_type).skeleton(options), (1, 3, 64, 64))


def test_errors_are_those_of_the_code() -> None:
    source, fragments = package_source(), error_fragments(table_rows(DOCUMENT, "What errors mean", "message"))
    assert len(fragments) == 9
    for fragment in fragments:
        assert fragment in source, f"no code says '{fragment}'"
