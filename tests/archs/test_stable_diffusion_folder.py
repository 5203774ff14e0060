"""Diffusers folders read without diffusers' own loader; prompt embeddings; what is said when files are missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from basicsr_quant.archs.osediff import sd_unet, sd_vae
from basicsr_quant.archs.published.stable_diffusion import (
    build_from_folder,
    compute_prompt_embedding,
    folder_state,
    read_prompt_embedding,
)
from basicsr_quant.errors import UserError

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("sd")
    sd_unet((8, 16), 1, 1, (1, 2), 8, 4, 4).save_pretrained(path / "unet")
    sd_vae((8, 16), 1, 4, 4, 0.3).save_pretrained(path / "vae", safe_serialization=False)
    return path


def test_a_folder_as_diffusers_writes_it(folder) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    for part, kind, suffix in (("unet", UNet2DConditionModel, ".safetensors"), ("vae", AutoencoderKL, ".bin")):
        expected = kind.from_pretrained(folder / part).state_dict()
        network = build_from_folder(folder, part)
        state, path = folder_state(folder, part)
        assert path.suffix == suffix
        network.load_state_dict(state)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())
    assert build_from_folder(folder, "vae").config.scaling_factor == 0.3


def test_old_names_of_attention(tmp_path, folder) -> None:
    state, _ = folder_state(folder, "vae")
    old = {"to_q": "query", "to_k": "key", "to_v": "value"}
    renamed = {}
    for name, tensor in state.items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        renamed[name.replace(".to_out.0.", ".proj_attn.")] = tensor.half()
    assert renamed.keys() != state.keys()
    (tmp_path / "vae").mkdir()
    save_file(renamed, tmp_path / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    found, _ = folder_state(tmp_path, "vae")
    assert found.keys() == state.keys()
    assert all(tensor.dtype == torch.float32 for tensor in found.values())


def test_what_is_missing_is_named_with_its_source(tmp_path, folder) -> None:
    message = r"unet/config.json' does not exist; .*2.1-base.*sd2-community.*path:sd"
    with pytest.raises(UserError, match=message) as caught:
        build_from_folder(tmp_path, "unet")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="diffusion_pytorch_model.safetensors' does not exist"):
        folder_state(tmp_path, "vae")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"_class_name": "AutoencoderTiny"}))
    with pytest.raises(UserError, match="describes 'AutoencoderTiny', not AutoencoderKL"):
        build_from_folder(tmp_path, "vae")
    (tmp_path / "vae" / "config.json").write_text("{")
    with pytest.raises(UserError, match="is no JSON file"):
        build_from_folder(tmp_path, "vae")


def test_prompt_embedding_files(tmp_path) -> None:
    embedding = torch.randn(1, 7, 8)
    save_file({"context": embedding}, tmp_path / "a.safetensors")
    torch.save(embedding[0], tmp_path / "b.pt")
    assert torch.equal(read_prompt_embedding(tmp_path / "a.safetensors"), embedding)
    assert torch.equal(read_prompt_embedding(tmp_path / "b.pt"), embedding)
    torch.save({"a": embedding, "b": embedding}, tmp_path / "c.pt")
    with pytest.raises(UserError, match="must hold one tensor"):
        read_prompt_embedding(tmp_path / "c.pt")


def make_text_encoder(folder: Path) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    letters = [chr(code) for code in range(97, 123)]
    names = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {name: number for number, name in enumerate(names)}
    (folder / "raw").mkdir(parents=True)
    (folder / "raw" / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "raw" / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        str(folder / "raw" / "vocab.json"), str(folder / "raw" / "merges.txt"), model_max_length=77)
    tokenizer.save_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    encoder = transformers.CLIPTextModel(transformers.CLIPTextConfig(
        vocab_size=len(names), hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, bos_token_id=0, eos_token_id=1, pad_token_id=1)).eval()
    encoder.save_pretrained(folder / "text_encoder")
    return encoder


def test_prompt_embedding_from_a_text_encoder(tmp_path) -> None:
    from basicsr_quant.compat import load_torchvision

    load_torchvision()
    encoder = make_text_encoder(tmp_path)
    found = compute_prompt_embedding(tmp_path)
    tokens = torch.tensor([[0] + [1] * 76])
    with torch.no_grad():
        expected = encoder(tokens).last_hidden_state
    assert found.shape == (1, 77, 8)
    torch.testing.assert_close(found, expected)
    assert not torch.equal(compute_prompt_embedding(tmp_path, "a cat"), found)
    with pytest.raises(UserError, match=r"text_encoder/config.json', which does not exist"):
        compute_prompt_embedding(tmp_path / "elsewhere")


def test_recorded_layout_of_the_embedding(data_root) -> None:
    path = data_root.parent / "fixtures" / "passionsr" / "empty_context_embedding.safetensors"
    if not path.is_file():
        pytest.skip("the recorded prompt embedding is not here")
    embedding = read_prompt_embedding(path)
    assert embedding.shape == (1, 77, 1024)
    assert float(next(iter(load_file(path).values()))[0, 0].norm()) == pytest.approx(17.254, abs=1e-3)
