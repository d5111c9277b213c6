"""Models that see: towers and text agree with autograd, and nobody's image is another's."""

import copy

import pytest
import torch
import transformers
from torch import nn

from fimlora import measure
from fimlora.errors import InvalidOption, UnsupportedModule
from fimlora.measuring.examples.batches import as_batch
from fimlora.measuring.resume.fingerprints import digest_batch
from support.reference import relative_error

IMAGE = 120
TEXT = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "max_position_embeddings": 512,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "image_size": 28, "patch_size": 14,
}  # fmt: skip
QWEN_VISION = {
    "depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2,
    "patch_size": 7, "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}


def drawn(model: nn.Module) -> nn.Module:
    """Weights wide enough that gradients are not all of a size."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            nn.init.normal_(module.weight, std=0.2)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
    return model.eval()


def llava() -> nn.Module:
    """Reads its tower's last layer but one."""
    torch.manual_seed(0)
    vision = transformers.CLIPVisionConfig(**VISION, projection_dim=16)
    text = transformers.LlamaConfig(**TEXT)
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE
    )
    return drawn(transformers.LlavaForConditionalGeneration(config))


def qwen() -> nn.Module:
    """Has one axis for all patches, and positions of three rows."""
    torch.manual_seed(0)
    config = transformers.Qwen2VLConfig(
        vision_config=QWEN_VISION, text_config=TEXT | {"rope_parameters": ROPE},
        image_token_id=IMAGE, video_token_id=121, vision_start_token_id=122,
        vision_end_token_id=123,
    )  # fmt: skip
    return drawn(transformers.Qwen2VLForConditionalGeneration(config))


def tokens(lengths: list[int], places: list[int]) -> dict[str, torch.Tensor]:
    """Rows of unequal length, each with places for parts of an image behind its second token."""
    generator = torch.Generator().manual_seed(1)
    width = max(n + k for n, k in zip(lengths, places, strict=True))
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (n, k) in enumerate(zip(lengths, places, strict=True)):
        words = torch.randint(10, 100, (n,), generator=generator)
        ids[row, : n + k] = torch.cat([words[:2], torch.full((k,), IMAGE), words[2:]])
        mask[row, : n + k] = 1
    labels = ids.masked_fill((mask == 0) | (ids == IMAGE), -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def one_by_one(batch: dict, lengths: list[int]) -> list[dict]:
    """Rows of a batch without padding."""
    return [
        {
            name: value[i : i + 1] if name == "pixel_values" else value[i : i + 1, :n]
            for name, value in batch.items()
        }
        for i, n in enumerate(lengths)
    ]


def agrees(model: nn.Module, batches: list[dict], rows: list[dict]) -> list[str]:
    """Measure a model that has never run; names of the modules that agree with autograd."""
    found = measure(
        copy.deepcopy(model), batches, target_modules="all-linear", n_batches=len(batches),
        estimator="exact",
    )  # fmt: skip
    names = [module.name for module in found.modules]
    energies = {name: [] for name in names}
    for row in rows:
        own = copy.deepcopy(model).requires_grad_(False)
        weights = [own.get_submodule(name).weight.requires_grad_() for name in names]
        gradients = torch.autograd.grad(own(**row).loss, weights, allow_unused=True)
        for name, gradient in zip(names, gradients, strict=True):
            found_here = torch.zeros(()) if gradient is None else gradient
            energies[name].append(found_here.double().square().sum())
    for name in names:
        assert relative_error(found.example_energies[name], torch.stack(energies[name])) < 1e-4
    return names


def test_an_image_for_each_row():
    """Of a tower whose last layer is not read, the others are measured in one batch."""
    batch = tokens([9, 5, 7], [4, 4, 4]) | {"pixel_values": torch.randn(3, 3, 28, 28)}

    names = agrees(llava(), [batch], one_by_one(batch, [13, 9, 11]))

    assert "model.vision_tower.encoder.layers.1.self_attn.q_proj" in names
    assert not any("vision_tower.encoder.layers.2" in name for name in names)
    assert any("multi_modal_projector" in name for name in names)


def test_one_axis_for_all_patches():
    """Rows are measured one at a time, whose patches are all theirs; together they are refused."""
    grids, rows = torch.tensor([[1, 4, 4], [1, 4, 8]]), []
    for n, grid in zip([9, 5], grids, strict=True):
        patches = int(grid.prod())
        row = tokens([n], [patches // 4])
        row["input_ids"][0, 1] = 122
        row["labels"][0, 1] = 122
        rows.append(
            row
            | {
                "pixel_values": torch.randn(patches, 3 * 2 * 7 * 7),
                "image_grid_thw": grid[None],
                "mm_token_type_ids": (row["input_ids"] == IMAGE).int(),
            }
        )

    names = agrees(qwen(), rows, rows)

    assert any(".visual.blocks.1." in name for name in names)
    both = tokens([9, 5], [4, 8]) | {
        "pixel_values": torch.randn(48, 294), "image_grid_thw": grids,
    }  # fmt: skip
    with pytest.raises(InvalidOption, match="has 48 rows for 2 examples"):
        measure(qwen(), [both], target_modules="all-linear", n_batches=1)


def test_images_that_are_not_one_for_each_row_are_refused():
    """Two of the first row and none of the second are as many as rows."""
    batch = tokens([9, 7], [8, 0]) | {"pixel_values": torch.randn(2, 3, 28, 28)}
    with pytest.raises(InvalidOption, match=r"\[8, 0\] places"):
        measure(llava(), [batch], target_modules="all-linear", n_batches=1)


def test_a_list_with_a_tensor_for_each_example():
    """Images of any size, and an example without one, in a batch of three: as each by itself."""
    grids, rows = [torch.tensor([[1, 4, 4]]), torch.tensor([[1, 4, 8]]), None], []
    for n, grid in zip([9, 5, 7], grids, strict=True):
        patches = int(grid.prod()) if grid is not None else 0
        row = tokens([n], [patches // 4])
        if grid is not None:
            row["input_ids"][0, 1] = row["labels"][0, 1] = 122
            row |= {"pixel_values": torch.randn(patches, 294), "image_grid_thw": grid}
        rows.append(row | {"mm_token_type_ids": (row["input_ids"] == IMAGE).int()})
    width = max(row["input_ids"].shape[1] for row in rows)
    fill = {"labels": -100}
    batch: dict = {
        name: torch.cat([
            nn.functional.pad(r[name], (0, width - r[name].shape[1]), value=fill.get(name, 0))
            for r in rows
        ])
        for name in ("input_ids", "attention_mask", "labels", "mm_token_type_ids")
    }  # fmt: skip
    for name in ("pixel_values", "image_grid_thw"):
        batch[name] = [row.get(name) for row in rows]

    agrees(qwen(), [batch], rows)

    wrong = batch | {"pixel_values": batch["pixel_values"][:2]}
    with pytest.raises(InvalidOption, match="a list of 2 tensors for 3 examples"):
        measure(qwen(), [wrong], target_modules="all-linear", n_batches=1)


def test_what_a_list_holds_tells_batches_apart():
    """A run is never gone on with under other images: not by what is printed of them."""
    one, other = torch.zeros(5000, 4), torch.zeros(5000, 4)
    other[2500, 2] = 1
    labels = torch.zeros(2, 3)
    digests = {digest_batch(as_batch({"a": [t, None], "labels": labels})) for t in (one, other)}
    assert len(digests) == 2


def test_whisper_is_refused_by_name():
    """It does not say how its decoder reads labels, so that no loss of ours would be its own."""
    config = transformers.WhisperConfig(
        vocab_size=64, num_mel_bins=8, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24,
        decoder_ffn_dim=24, max_source_positions=20, max_target_positions=32, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=3,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config)
    batch = {"input_features": torch.randn(3, 8, 40), "labels": torch.randint(4, 60, (3, 6))}

    with pytest.raises(UnsupportedModule, match="does not say how its decoder reads labels"):
        measure(model, [batch], target_modules="all-linear", n_batches=1)
