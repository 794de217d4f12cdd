"""CC4S: the losses of each stage, their values and gradients, and the views of the consistency."""

import random

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from benchmarks import textbook
from config import ModelConfig
from datasets.batch import collate
from errors import UserError
from losses.colour_constraint import colour_constraint
from losses.eigenspace import eigenspace_consistency
from methods import build_method
from methods.blpseg import BLPSegConfig
from methods.cc4s import CC4SConfig, running_statistics_untouched
from methods.dmpls import DMPLSConfig
from ops import pixelwise
from ops.resizing import upsample

MODEL = ModelConfig(backbone="resnet18", weights="none")


def batch(size=65, labelled=True):
    generator = torch.Generator().manual_seed(0)
    label = torch.full((2, size, size), 255)
    if labelled:
        label[:, 10:20, 10:50] = 1
    superpixel = (torch.arange(size) // 17).view(1, size, 1).expand(2, size, size).clone().int()
    superpixel[1] += 4
    return {
        "image": torch.randn(2, 3, size, size, generator=generator),
        "label": label,
        "boundary": torch.zeros(2, size, size, dtype=torch.bool),
        "outside": torch.zeros(2, size, size, dtype=torch.bool),
        "superpixel": superpixel,
        "edges": torch.tensor([[0, 1], [1, 2], [5, 6]]),
        "edge_weights": torch.tensor([0.1, 0.5, 0.8]),
        "superpixel_starts": [0, 4, 8],
        "edge_starts": [0, 2, 3],
    }


STAGES = {
    "baseline": (CC4SConfig(network="baseline"), {"cross_entropy"}),
    "ur": (CC4SConfig(soft_entropy=0.7), {"cross_entropy", "soft_entropy"}),
    "ss": (
        CC4SConfig(soft_entropy=1, consistency=30, trace=0.5, view="flip"),
        {"cross_entropy", "soft_entropy", "consistency"},
    ),
    "ss_stage2": (
        CC4SConfig(soft_entropy=0.7, consistency=30, colour=0.3, view="flip"),
        {"cross_entropy", "soft_entropy", "consistency", "colour"},
    ),
    "colour_alone": (CC4SConfig(colour=0.3), {"cross_entropy", "colour"}),
}


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize(
    "config",
    [
        *(config for config, _ in STAGES.values()),
        CC4SConfig(consistency=30, view="crop"),
        BLPSegConfig(width=16, self_training_from=0),
        CC4SConfig(network="baseline", gated_crf=0.1, entropy=0.1),
        DMPLSConfig(),
    ],
)
def test_losses_on_a_fake_gpu_mix_no_devices_and_read_no_values(monkeypatch, config):
    """Tensors on the fake GPU have no values, so reading a value raises an error. Backward would need a real GPU."""
    monkeypatch.setattr(torch.autograd, "grad", lambda loss, small, **_: (torch.zeros_like(small),))
    made, gpu = batch(), torch.device("cuda", 0)
    made["tags"] = torch.ones(2, 3)
    with FakeTensorMode() as fake:
        with gpu:
            method = build_method(config, MODEL, 4).train()
        method.begin_step(1, 0.0)
        losses = method({k: fake.from_tensor(v).to(gpu) if isinstance(v, torch.Tensor) else v for k, v in made.items()})
        assert losses and all(loss.device == gpu for loss in losses.values())
        with pytest.raises(DataDependentOutputException):
            float(sum(losses.values()).detach())


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("labelled", [True, False])
def test_every_stage_has_its_losses_and_finite_gradients(stage, labelled):
    config, names = STAGES[stage]
    method = build_method(config, MODEL, 4).train()
    losses = method(batch(labelled=labelled))
    assert set(losses) == names
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
    assert (losses["cross_entropy"] == 0) == (not labelled)


@pytest.mark.parametrize("align_corners", [True, False])
def test_losses_resize_the_logits_like_the_prediction(align_corners):
    logits = torch.randn(3, 4, 5, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(3, 4, 33, 50, dtype=torch.float64)

    def mean(large, some):
        return (large.square() * weight[some]).sum(), large.new_ones(())

    got = pixelwise.pixelwise({"some": mean}, logits, (33, 50), align_corners)["some"]
    want = (upsample(logits, (33, 50), align_corners).square() * weight).sum()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits) for loss in (got, want)))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "held, dtype",
    [
        (1, torch.float64),
        pytest.param(10**9, torch.float64, marks=pytest.mark.slow),
        pytest.param(1, torch.float32, marks=pytest.mark.slow),
    ],
)
def test_every_stage_equals_the_textbook_in_value_and_gradient(monkeypatch, stage, held, dtype):
    """Compares with full-matrix formulas on the same weights. The losses take all images at once, or one by one."""
    monkeypatch.setitem(pixelwise.HELD, "cpu", held)
    torch.manual_seed(0)
    method = build_method(STAGES[stage][0], MODEL, 4).eval().to(dtype)
    if stage != "baseline":
        torch.nn.init.constant_(method.network.walk.gamma, 0.5)
    given = batch()
    given |= {name: given[name].to(dtype) for name in ("image", "edge_weights")}
    given["label"][1, :15] = 255  # with equal counts of labels, a mean of the images' means would pass
    given["boundary"][0, 20:40] = True
    got, want = method(given), textbook.losses(method.network, method.config, given)
    assert got.keys() == want.keys()
    for name, value in want.items():
        # In float32, the textbook's Laplacian is less exact than the sum over edges.
        tolerance = {"rel": 1e-9} if dtype == torch.float64 else {"rel": 1e-5, "abs": 1e-8}
        assert got[name].item() == pytest.approx(value.item(), **tolerance), name
    gradients = [torch.autograd.grad(sum(losses.values()), method.parameters(), allow_unused=True) for losses in (got, want)]
    largest = max(theirs.norm() for theirs in gradients[1] if theirs is not None)
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            if dtype == torch.float64:
                torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)  # only rounding at the key's bias
            else:
                assert (ours - theirs).norm() <= 1e-5 * max(theirs.norm(), 1e-2 * largest)


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_the_colour_constraint_uses_the_graph_part_of_each_image(monkeypatch, at_once):
    """`collate` joins four images. Their maps have one to four superpixels; the third has neither superpixels nor edges."""
    monkeypatch.setitem(pixelwise.HELD, "cpu", at_once * 4 * 65 * 65)
    items = []
    for number in range(4):
        superpixel = (torch.arange(65) * (number + 1) // 65).expand(65, 65).int().clone()
        edges = torch.tensor([[a, a + 1] for a in range(number)], dtype=torch.int64).reshape(-1, 2)
        if number == 2:
            superpixel[:], edges = -1, edges[:0]
        items.append({
            "image": torch.zeros(3, 65, 65, dtype=torch.uint8), "label": torch.full((65, 65), number, dtype=torch.uint8),
            "superpixel": superpixel, "edges": edges, "edge_weights": 0.1 * (number + 1) * torch.ones(len(edges)),
        })  # fmt: skip
    made = collate(items)
    made |= {"image": torch.randn(4, 3, 65, 65, dtype=torch.float64), "label": made["label"].long()}
    made["edge_weights"] = made["edge_weights"].double()
    method = build_method(CC4SConfig(colour=1), MODEL, 4).eval().double()
    logits = method.predict(made["image"])
    want, _ = colour_constraint(logits, made["superpixel"], made["edges"], made["edge_weights"], made["superpixel_starts"][-1])
    assert want > 0
    torch.testing.assert_close(method(made)["colour"], want)


@pytest.mark.slow
@pytest.mark.parametrize("on", ["eigenspace", "x", "z"])
@pytest.mark.parametrize("view", ["flip", "crop", "random"])
@pytest.mark.parametrize("size", [64, 65])
def test_every_consistency_runs_on_every_view(on, view, size):
    method = build_method(CC4SConfig(consistency=1, consistency_on=on, view=view), MODEL, 4).train()
    loss = method(batch(size))["consistency"]
    loss.backward()
    assert loss > 0 and torch.isfinite(loss)
    assert method.network.backbone.conv1.weight.grad.abs().sum() > 0


MIRRORED = torch.arange(81).view(9, 9).flip(1).reshape(-1)  # positions of the map of a crop of 65


def test_the_consistency_equals_energies_mirrored_by_hand():
    """Compares with two explicit passes in evaluation mode (no batch statistics, no dropout)."""
    torch.manual_seed(0)
    config = CC4SConfig(consistency=30, kl="rows", transition_axis="key", trace=0.5, view="flip")
    method = build_method(config, MODEL, 4).eval()
    images = batch()["image"]
    with torch.no_grad():
        query, key = (m.flatten(2).mT for m in method.network.walk.query_key(method.network.features(images)))
        mirrored = method.network.walk.query_key(method.network.features(images.flip(-1)))
        view_query, view_key = (m.flatten(2).mT[:, MIRRORED] for m in mirrored)
        want = 30 * eigenspace_consistency(query, key, view_query, view_key, axis="key", kl="rows", trace_weight=0.5)
        assert method(batch())["consistency"].item() == pytest.approx(want.item(), rel=1e-4)


@pytest.mark.parametrize("on", ["x", "z"])
def test_the_consistency_on_features_is_the_mean_squared_difference(on):
    torch.manual_seed(0)
    method = build_method(CC4SConfig(consistency=30, consistency_on=on, view="flip"), MODEL, 4).eval()
    network = method.network
    torch.nn.init.constant_(network.walk.gamma, 0.5)
    with torch.no_grad():
        maps = [network.features(images) for images in (batch()["image"], batch()["image"].flip(-1))]
        if on == "z":
            maps = [network.walk(features)[0] for features in maps]
        ours, theirs = (features.flatten(2).mT for features in maps)
        want = 30 * (ours - theirs[:, MIRRORED]).square().mean()
        assert method(batch())["consistency"].item() == pytest.approx(want.item(), rel=1e-4)


def test_a_random_view_is_the_flip_or_the_top_or_the_bottom():
    """As in the released code with crop 465: rows 0 to 384 or rows 80 to 464, and all columns."""
    random.seed(0)
    images = torch.arange(465)[:, None] + 1000 * torch.arange(465)  # the value of a pixel is its row and column
    images = images.expand(1, 3, 465, 465)
    method = build_method(CC4SConfig(consistency=1), MODEL, 4)
    views = [method._draw_view(images).images for _ in range(100)]
    wanted = {"flip": images.flip(-1), "top": images[:, :, :385], "bottom": images[:, :, 80:]}
    drawn = [next(name for name, want in wanted.items() if torch.equal(view, want)) for view in views]
    assert 30 < drawn.count("flip") < 70
    assert 10 < drawn.count("top") < 40 and 10 < drawn.count("bottom") < 40


@pytest.mark.parametrize("kl, size, factor", [("entries", 465, 1), ("entries", 97, 169 / 3481), ("rows", 97, 1)])
def test_the_consistency_weight_scales_with_the_number_of_positions(monkeypatch, kl, size, factor):
    """The weight is the published one at the published crop, also for the crop view. It is scaled by N / 3481 elsewhere."""
    seen = []

    def loss(query, *others, **settings):
        seen.append(query.shape[1])
        return query.sum() * 0 + 1

    monkeypatch.setattr("methods.cc4s.eigenspace_consistency", loss)
    config = CC4SConfig(consistency=30, kl=kl, view="crop")
    method = build_method(config, MODEL, 4).eval()
    side = (size - 1) // 8 + 1
    maps = torch.zeros(1, 64, side, side)
    monkeypatch.setattr(method.network, "features", lambda images: images.new_zeros(1, 512, (images.shape[2] + 7) // 8, side))
    consistency = method._consistency(torch.zeros(1, 3, size, size), (maps, maps))
    assert consistency.item() == pytest.approx(factor)
    assert seen[0] < side**2, "only positions of the crop are compared"


def test_the_consistency_is_the_same_on_a_map_twice_as_fine(monkeypatch):
    """Each position becomes four equal positions. The consistency must not change, though the mean over entries does."""
    torch.manual_seed(0)
    maps, values = torch.randn(4, 1, 8, 3, 3), []
    for factor in (1, 2):
        query, key, *view = (image_map.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3) for image_map in maps)
        method = build_method(CC4SConfig(consistency=30, view="flip", trace=0), MODEL, 4)
        monkeypatch.setattr(method.network, "features", lambda images: images)
        monkeypatch.setattr(method.network.walk, "query_key", lambda _, view=tuple(view): view)
        side = 8 * (3 * factor - 1) + 1
        values.append(method._consistency(torch.zeros(1, 3, side, side), (query, key)).item())
    assert values[0] > 0 and values[1] == pytest.approx(values[0], rel=1e-5)


def test_soft_entropy_without_superpixels_covers_the_whole_image():
    method = build_method(CC4SConfig(soft_entropy=1), MODEL, 4).eval()
    given = batch()
    given["outside"][:, :, 40:] = True
    masked = given | {"boundary": given["outside"]}
    del given["boundary"]
    assert method(given)["soft_entropy"].item() == pytest.approx(method(masked)["soft_entropy"].item())
    assert method(given)["soft_entropy"].item() != pytest.approx(method(batch())["soft_entropy"].item(), rel=1e-4)


def test_the_view_does_not_change_the_running_statistics():
    torch.manual_seed(0)
    method = build_method(CC4SConfig(consistency=1), MODEL, 4).train()
    before = {k: v.clone() for k, v in method.state_dict().items() if "running" in k or "num_batches" in k}
    with torch.no_grad(), running_statistics_untouched(method.network):
        method.network.features(batch()["image"] + 5)
    assert all(torch.equal(before[k], method.state_dict()[k]) for k in before)
    method(batch())
    assert int(method.network.backbone.bn1.num_batches_tracked) == 1


def test_consistency_without_the_walk_is_refused():
    with pytest.raises(UserError, match="needs the walk"):
        build_method(CC4SConfig(network="baseline", consistency=1), MODEL, 4)
