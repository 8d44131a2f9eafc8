"""The scripts that cut the bundled pictures and train the bundled classifiers, on a few drawn pictures."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models import VisionTransformer

from vit_ptq_bench.tasks.classification.zoo import build_architecture
from vit_ptq_bench.tasks.training import classifiers, fashion_slices
from vit_ptq_bench.tasks.training.classifiers import (
    Trainer,
    main,
    parse_options,
    start_from,
    varied,
)

WIDE = {"img_size": 28, "patch_size": 4, "embed_dim": 192, "num_heads": 3}


def _write(path, array):
    """A file in the form of Fashion-MNIST's, as torchvision reads it."""
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(head + array.tobytes())


@pytest.fixture
def root(tmp_path):
    """Two hundred training pictures, twenty of every class, and a hundred to judge on."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, n in (("train", 200), ("t10k", 100)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        _write(raw / f"{part}-images-idx3-ubyte", images)
        _write(raw / f"{part}-labels-idx1-ubyte", np.arange(n, dtype=np.uint8) % 10)
    return tmp_path


@pytest.fixture
def small_slices(monkeypatch):
    monkeypatch.setattr(fashion_slices, "SLICE_SIZES", {"test": 50, "training": 40, "holdout": 30})
    monkeypatch.setattr(classifiers, "ROUND", 64)


def test_slices_are_the_first_of_every_class_and_held_out_the_last(root, small_slices):
    arrays = fashion_slices.cut(root, download=False)
    assert arrays["test_images"].shape == (50, 28, 28)
    for name, each in (("test", 5), ("training", 4), ("holdout", 3)):
        assert (np.bincount(arrays[f"{name}_labels"]) == each).all()
    fit = fashion_slices.fitting_pictures(root)
    assert len(fit.labels) == 170
    seen = {image[..., 0].tobytes() for image in fit.images}
    assert all(image.tobytes() in seen for image in arrays["training_images"])
    assert not any(image.tobytes() in seen for image in arrays["holdout_images"])


def test_a_model_that_starts_from_one_of_its_size_computes_the_same_features(tmp_path):
    torch.manual_seed(0)
    source = VisionTransformer(**WIDE, depth=10, num_classes=7).eval()
    save_file(source.state_dict(), tmp_path / "source.safetensors")
    model = build_architecture("vit_mini")
    blocks = [9, 0, 1, 2, 3, 5, 6, 8]
    start_from(model, tmp_path / "source.safetensors", blocks)
    source.blocks = torch.nn.Sequential(*(source.blocks[i] for i in blocks))
    images = torch.randn(3, 3, 28, 28)
    with torch.no_grad():
        assert torch.equal(model.forward_features(images), source.forward_features(images))


def test_a_distilled_model_begins_with_two_class_tokens_that_are_alike(tmp_path):
    source = VisionTransformer(**WIDE, depth=8, num_classes=7)
    save_file(source.state_dict(), tmp_path / "source.safetensors")
    model = build_architecture("deit_mini")
    start_from(model, tmp_path / "source.safetensors", range(len(model.blocks)))
    with torch.no_grad():
        own, distilled = model.forward_features(torch.randn(2, 3, 28, 28))[:, :2].unbind(1)
    assert torch.allclose(own, distilled, atol=1e-5) and own.abs().max() > 0.1


def test_weights_of_another_width_are_refused(tmp_path):
    source = VisionTransformer(**WIDE | {"embed_dim": 96}, depth=8)
    save_file(source.state_dict(), tmp_path / "source.safetensors")
    with pytest.raises(RuntimeError, match="size mismatch"):
        start_from(build_architecture("vit_mini"), tmp_path / "source.safetensors", range(8))


def test_blocks_that_are_not_there_are_refused(tmp_path):
    source = VisionTransformer(**WIDE, depth=7)
    save_file(source.state_dict(), tmp_path / "source.safetensors")
    with pytest.raises(ValueError, match=r"does not fit.*blocks.7"):
        start_from(build_architecture("vit_mini"), tmp_path / "source.safetensors", range(8))


def test_pictures_are_moved_over_black_and_mirrored():
    image = np.arange(1, 28 * 28 * 3 + 1, dtype=np.uint32).reshape(1, 28, 28, 3) % 255 + 1
    image = image.astype(np.uint8)
    framed = np.pad(image, ((0, 0), (2, 2), (2, 2), (0, 0)))[0]
    views = [framed[i : i + 28, j : j + 28] for i in range(5) for j in range(5)]
    allowed = {view.tobytes() for one in views for view in (one, one[:, ::-1])}
    found = {varied(image, np.random.default_rng(seed))[0].tobytes() for seed in range(300)}
    assert found == allowed


def test_a_resumed_training_gives_the_weights_of_an_uninterrupted_one(
    root, small_slices, tmp_path, capsys
):
    def train(name, images):
        output = tmp_path / f"{name}.safetensors"
        main(["swin_mini", "--data", str(root), "--images", images, "--output", str(output)])
        return load_file(output)

    whole = train("whole", "192")
    words = ["swin_mini", "--data", str(root), "--images", "192"]
    first = Trainer(parse_options([*words, "--output", str(tmp_path / "halves.safetensors")]))
    first._round()
    first._save()
    halves = train("halves", "192")
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    assert not (tmp_path / "halves.checkpoint.pt").exists()
    assert "% top-1 on the test set" in capsys.readouterr().out


def test_what_does_not_go_together_is_refused(capsys):
    for words, text in (
        (["vit_mini"], "training needs --data"),
        (["vit_mini", "--data", "x", "--teacher", "swin_mini"], "cannot have one"),
        (["deit_mini", "--data", "x"], "deit_mini needs --teacher"),
    ):
        with pytest.raises(SystemExit):
            parse_options(words)
        assert text in capsys.readouterr().err
