"""Networks, walk and views compared with plain formulas."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from watching import largest_tensor

from config import ModelConfig
from errors import UserError
from methods.views import crop_view, flip_view
from models.cc4s import BaselineNet, RandomWalkNet
from models.pretrained import load_encoder
from models.random_walk import RandomWalk
from models.resnet import RESNETS, channels, deep_stem_resnet, stride8_resnet
from models.upernet import MeanOfParts
from ops import pairs
from ops.walk import walk


@pytest.mark.parametrize("name", RESNETS)
def test_backbones_have_stride_8_and_torchvision_weight_names(name):
    with torch.device("meta"):  # shapes without values
        backbone = stride8_resnet(name).eval()
        theirs = {k: v.shape for k, v in getattr(torchvision.models, name)().state_dict().items() if not k.startswith("fc.")}
        maps = backbone(torch.zeros(1, 3, 65, 81))
    assert {k: v.shape for k, v in backbone.state_dict().items()} == theirs
    assert maps[-1].shape == (1, channels(backbone.layer4), 9, 11)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_deep_stem_backbones_give_four_maps(name):
    """Only the stem and the first block of layer1 differ from torchvision."""
    backbone = deep_stem_resnet(name).eval()
    theirs = {k: v.shape for k, v in getattr(torchvision.models, name)().state_dict().items() if not k.startswith("fc.")}
    ours = {k: v.shape for k, v in backbone.state_dict().items()}
    assert all(k.startswith(("conv1", "bn1", "layer1.0")) for k in ours.keys() ^ theirs.keys())
    assert all(k.startswith(("bn1", "layer1.0")) for k in ours.keys() & theirs.keys() if ours[k] != theirs[k])
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, 65, 81))
    widths = [channels(getattr(backbone, f"layer{n}")) for n in range(1, 5)]
    sizes = [(17, 21), (9, 11), (5, 6), (3, 3)]
    assert [m.shape[1:] for m in maps] == [(width, *size) for width, size in zip(widths, sizes, strict=True)]


def naive_layer(blocks, features, dilations):
    """A layer of basic blocks as in the released code: the first convolution is plain, the second is dilated."""
    for block, dilation in zip(blocks, dilations, strict=True):
        shortcut = features
        features = block.bn1(F.conv2d(features, block.conv1.weight, padding=1)).relu()
        features = block.bn2(F.conv2d(features, block.conv2.weight, padding=dilation, dilation=dilation))
        if block.downsample is not None:
            shortcut = block.downsample[1](F.conv2d(shortcut, block.downsample[0].weight))
        features = (features + shortcut).relu()
    return features


@pytest.mark.parametrize("name, blocks", [("resnet18", 2), ("resnet34", 6)])
def test_basic_blocks_dilate_only_their_second_convolution(name, blocks):
    """Holds for every block of layers 3 and 4, also the first."""
    backbone = stride8_resnet(name, layer4_dilations=(4, 8, 16)).eval().double()
    features = torch.randn(1, 128, 20, 20, dtype=torch.float64)
    with torch.no_grad():
        want = naive_layer(backbone.layer3, features, [2] * blocks)
        torch.testing.assert_close(backbone.layer3(features), want)
        depth = len(backbone.layer4)
        torch.testing.assert_close(backbone.layer4(want), naive_layer(backbone.layer4, want, [4, 8, 16][:depth]))


def test_bottlenecks_have_the_stride_in_the_1x1_convolution():
    block = stride8_resnet("resnet50").layer2[0]
    assert block.conv1.stride == (2, 2) and block.conv2.stride == (1, 1)


def test_local_weights_with_a_classifier_load(tmp_path):
    theirs = torchvision.models.resnet18()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    backbone = stride8_resnet("resnet18")
    load_encoder(backbone, "resnet18", str(tmp_path / "resnet18.pth"))
    assert torch.equal(backbone.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)


@pytest.mark.parametrize("content", [b"no weights", None])
def test_wrong_weights_are_refused_in_one_line(tmp_path, content):
    file = tmp_path / "weights.pth"
    file.write_bytes(content) if content else torch.save(torchvision.models.resnet34().state_dict(), file)
    with pytest.raises(UserError, match=r"weights\.pth") as caught:
        load_encoder(stride8_resnet("resnet50"), "resnet50", str(file))
    assert "\n" not in str(caught.value)


def test_a_failed_download_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.urlopen", refuse)
    with pytest.raises(UserError, match=r"could not download https://.*resnet18.*--model.weights FILE"):
        load_encoder(stride8_resnet("resnet18"), "resnet18", "imagenet")
    with pytest.raises(UserError, match="none, imagenet, IMAGENET1K_V1"):
        load_encoder(stride8_resnet("resnet18"), "resnet18", "imgnet")
    with pytest.raises(UserError, match=r"could not download https://.*gluon_resnet50_v1s.*--model.weights FILE"):
        load_encoder(deep_stem_resnet("resnet50"), "resnet50", "imagenet")
    with pytest.raises(UserError, match="choose none or a path"):
        load_encoder(deep_stem_resnet("resnet18"), "resnet18", "imagenet")


@pytest.mark.parametrize("size", [(1, 1), (3, 4), (6, 12), (7, 50)])
@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_means_of_parts_equal_adaptive_pooling(size, parts):
    features = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(MeanOfParts(parts)(features), torch.nn.functional.adaptive_avg_pool2d(features, parts))


def dense_walk(query, key, value):
    """softmax(Q K^T) V with the N x N matrix."""
    query, key, flat = (m.flatten(2).mT for m in (query, key, value))
    return ((query @ key.mT).softmax(-1) @ flat).mT.reshape(value.shape)


@pytest.mark.parametrize("held", [1, 4 * 35, 35 * 35, 10**6])  # one row, four rows, one image, both images
def test_the_walk_equals_the_dense_formula(monkeypatch, held):
    monkeypatch.setitem(pairs.HELD, "cpu", held)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, d, 5, 7, generator=generator, dtype=torch.float64).requires_grad_() for d in (4, 4, 10)]
    got, want = walk(*inputs), dense_walk(*inputs)
    torch.testing.assert_close(got, want)
    weights = torch.randn(got.shape, generator=generator, dtype=torch.float64)
    got = torch.autograd.grad((got * weights).sum(), inputs)
    torch.testing.assert_close(got, torch.autograd.grad((want * weights).sum(), inputs))


@pytest.mark.parametrize("largest", [3, 60])  # energies of some tens, or above 1e4; all exact in float32
def test_the_walk_in_float32_equals_the_dense_formula_in_float64(largest):
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 8, 9, 10), (2, 8, 9, 10), (2, 12, 9, 10))
    exact = [torch.randint(-largest, largest + 1, shape, generator=generator).double().requires_grad_() for shape in shapes]
    single = [part.detach().float().requires_grad_() for part in exact]
    assert largest == 3 or (exact[0].flatten(2).mT @ exact[1].flatten(2)).abs().max() > 1e4
    weights = torch.randn(shapes[2], generator=generator, dtype=torch.float64)
    got, want = walk(*single), dense_walk(*exact)
    ours = [got, *torch.autograd.grad(got, single, weights.float())]
    theirs = [want, *torch.autograd.grad(want, exact, weights)]
    for got_part, want_part in zip(ours, theirs, strict=True):
        assert torch.isfinite(got_part).all()
        assert (got_part.double() - want_part).norm() <= 1e-5 * want_part.norm() + 1e-9


def test_the_walk_holds_no_square_matrix_in_training():
    inputs = [torch.randn(1, d, 50, 50).requires_grad_() for d in (8, 8, 64)]
    largest = largest_tensor(lambda: walk(*inputs).sum().backward())
    assert largest <= pairs.HELD["cpu"] < 2500**2


def test_the_walk_keeps_its_precision_under_autocast():
    query, key, value = (4 * torch.randn(1, d, 6, 6) for d in (8, 8, 16))
    with torch.autocast("cpu", torch.bfloat16):
        got = walk(query, key, value)
    torch.testing.assert_close(got, dense_walk(query, key, value))


def test_gradients_of_the_walk_stay_accurate_with_bfloat16_values():
    """Rows of P are almost one-hot, so the gradients are small differences of large numbers."""
    generator = torch.Generator().manual_seed(0)
    query, key = ((4 * torch.randn(2, 8, 6, 6, generator=generator)).requires_grad_() for _ in range(2))
    value, weights = (torch.randn(2, 64, 6, 6, generator=generator).bfloat16() for _ in range(2))
    got = torch.autograd.grad(walk(query, key, value), (query, key), weights)
    exact = dense_walk(*(m.double() for m in (query, key, value)))
    want = torch.autograd.grad(exact, (query, key), weights.double())
    for ours, theirs in zip(got, want, strict=True):
        assert (ours - theirs).norm() < 0.005 * theirs.norm()


@pytest.mark.parametrize("shrink", [1, 2, 3])
def test_random_walk_starts_as_the_identity_and_shrinks_its_energies(shrink):
    module = RandomWalk(16, shrink)
    features = torch.randn(2, 16, 13, 10)
    walked, query, key = module(features)
    assert torch.equal(walked, features)
    assert query.shape == key.shape == (2, 2, 12 // shrink + 1, 9 // shrink + 1)
    assert all(torch.equal(a, b) for a, b in zip((query, key), module.query_key(features), strict=True))


@pytest.mark.parametrize("network", [BaselineNet(ModelConfig("resnet18"), 5), RandomWalkNet(ModelConfig("resnet18"), 5)])
def test_networks_give_logits_of_the_image_size(network):
    with torch.no_grad():
        assert network.eval()(torch.zeros(1, 3, 50, 67)).shape == (1, 5, 50, 67)


# Views: `pixels` stands in for a network. Its map has the network's size. Each position holds the pixel that it looks at, or 0
# after the last pixel. If the maps of image and view agree, their positions match.


@pytest.fixture(scope="module")
def pixels():
    backbone = stride8_resnet("resnet18").eval()

    @cache
    def map_size(size):
        with torch.no_grad():
            return backbone(torch.zeros(1, 3, *size))[-1].shape[-2:]

    def of(images, shrink=1):
        rows, columns = ((side - 1) // shrink + 1 for side in map_size(images.shape[-2:]))
        looked_at = images[..., :: 8 * shrink, :: 8 * shrink]
        feature_map = torch.zeros(*images.shape[:2], rows, columns)
        feature_map[..., : looked_at.shape[-2], : looked_at.shape[-1]] = looked_at
        return feature_map

    return of


EVERY_WIDTH = [((65, width), 1) for width in range(64, 73)]


@pytest.mark.parametrize("size, shrink", [*EVERY_WIDTH, ((50, 65), 1), ((65, 65), 2), ((65, 73), 3)])
def test_positions_of_the_flip_view_match_the_image(pixels, size, shrink):
    images = torch.randn(2, 3, *size)
    view = flip_view(images, shrink)
    assert torch.equal(view.of_image(pixels(images, shrink)), view.of_view(pixels(view.images, shrink)))


@pytest.mark.parametrize("size, shrink", [*EVERY_WIDTH, ((65, 33), 2), ((97, 49), 3)])
def test_positions_of_the_crop_view_match_the_image(pixels, size, shrink):
    images = torch.randn(2, 3, *size)
    for _ in range(10):
        view = crop_view(images, shrink)
        got = view.of_view(pixels(view.images, shrink))
        assert torch.equal(view.of_image(pixels(images, shrink)), got)
        assert got.shape[1] < pixels(images, shrink)[0, 0].numel()


@pytest.mark.parametrize("view, fitting", [(crop_view, 65), (flip_view, 73)])
def test_views_refuse_an_image_size_that_does_not_fit_shrink(view, fitting):
    with pytest.raises(UserError, match=f"choose {fitting}"):
        view(torch.zeros(1, 3, fitting + 8, fitting + 1), shrink=2)


def test_strided_convolutions_mirror_exactly_at_width_8k_plus_1():
    """At width 8k + 1, features of the mirrored image are the mirrored features. So the flip view cuts to this width."""
    network = nn.Sequential(*(nn.Conv2d(3, 3, 3, stride=2, padding=1, bias=False) for _ in range(3))).double()
    for layer in network:
        layer.weight.data = layer.weight.data + layer.weight.data.flip(-1)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    view = flip_view(images)
    cut = images[..., : view.images.shape[-1]]
    torch.testing.assert_close(view.of_image(network(cut)), view.of_view(network(view.images)))
