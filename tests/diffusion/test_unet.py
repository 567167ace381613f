"""Laws of the U-Net and its parts, for every choice of its configuration, and what it refuses."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tangled.diffusion.unet import (
    Level,
    SelfAttention,
    UNet,
    UNetConfig,
    time_features,
)


def config(**choices):
    return UNetConfig(
        **{"widths": (8, 16), "blocks": 1, "groups": 4} | choices
    )


def unet(**choices):
    torch.manual_seed(0)
    return UNet(config(**choices)).double()


def pictures(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


CHOICES = [
    {},
    {"norm": "layer"},
    {"norm": "batch"},
    {"norm": "none"},
    {"activation": "relu"},
    {"activation": "gelu"},
    {"activation": "mish"},
    {"time": "scale_shift"},
    {"time": "none"},
    {"skips": False},
    {"attention": (0, 1), "head_dim": 4},
    {"head_dim": None},
    {"blocks": 3},
    {"padding": 0},
    {"cosine_first": False},
    {"rate_shift": 1},
    {"widths": (8, 16, 24, 32)},
    {"outputs": 6},
]


@pytest.mark.verifies("eq-unet")
@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_every_choice_makes_another_network_of_the_same_kind(choices):
    model = unet(**choices).eval()
    x, t = pictures(3, 3, 16, 24), torch.tensor([1, 5, 900])
    output = model(x, t)
    assert output.shape == (3, choices.get("outputs", 3), 16, 24)
    # No picture sees another one of its batch.
    assert_close(model(x[1:2], t[1:2]), output[1:2], rtol=1e-9, atol=1e-9)
    output.square().sum().backward()
    idle = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    silent = "time_embedding" if choices.get("time") == "none" else " "
    # Before a normalisation the bias of a group of one channel has no effect.
    assert [n for n in idle if silent not in n and "to_k.bias" not in n] == []
    if choices and choices != {"outputs": 6}:
        with torch.no_grad():
            plain = unet().eval()(x, t)
        assert not torch.allclose(plain, output, atol=1e-3)


@pytest.mark.parametrize("size", [8, 16, 32, 64])
def test_pictures_keep_their_size(size):
    model = UNet(config(widths=(8, 16, 16, 16)))
    x = torch.randn(1, 3, size, size)
    assert model(x, torch.ones(1).long()).shape == x.shape


def test_without_time_the_step_does_not_count():
    x, t = pictures(2, 3, 8, 8), torch.tensor([1, 900])
    model = unet(time="none")
    assert torch.equal(model(x, t), model(x, t.flip(0)))


def test_without_skips_nothing_passes_beside_the_bottom():
    x, t = pictures(1, 3, 8, 8), torch.ones(1).long()
    for skips in (True, False):
        model = unet(skips=skips, norm="none", time="none")
        cut = model.mid_block.resnets[1].register_forward_hook(
            lambda module, given, output: torch.zeros_like(output)
        )
        moved = model(x, t) - model(x.flip(3), t)
        assert bool(moved.abs().max() > 1e-6) == skips
        cut.remove()


def test_scale_and_shift_of_zero_is_no_step_at_all():
    scaled, without = unet(time="scale_shift"), unet(time="none")
    for name, parameter in scaled.named_parameters():
        if "time_emb_proj" in name:
            nn.init.zeros_(parameter)
    state = scaled.state_dict()
    without.load_state_dict({n: state[n] for n in without.state_dict()})
    x, t = pictures(2, 3, 8, 8), torch.tensor([3, 4])
    assert_close(scaled(x, t), without(x, t))


@pytest.mark.verifies("eq-unet-attention")
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_does_not_know_where_a_place_is(heads):
    attend = SelfAttention(config(head_dim=16 // heads), 16).double()
    x = pictures(2, 16, 3, 4)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    mixed = x.flatten(2)[..., order].reshape(x.shape)
    expected = attend(x).flatten(2)[..., order].reshape(x.shape)
    assert_close(attend(mixed), expected)


def test_a_label_moves_the_output_as_the_step_does():
    model = unet(classes=10)
    x, t = pictures(2, 3, 8, 8), torch.tensor([7, 7])
    seven, eight = (model(x, t, torch.tensor([n, n])) for n in (7, 8))
    assert not torch.allclose(seven, eight)
    nn.init.zeros_(model.class_embedding.weight)
    plain = unet()
    plain.load_state_dict(model.state_dict(), strict=False)
    assert_close(model(x, t, torch.tensor([1, 2])), plain(x, t))


@pytest.mark.verifies("eq-time-features")
@pytest.mark.parametrize("shift", [0, 1])
def test_the_waves_are_circles_of_the_right_lengths(shift):
    t = torch.arange(1, 2000)
    waves = time_features(t, 8, rate_shift=shift).double()
    cosine, sine = waves.chunk(2, 1)
    assert_close(
        cosine**2 + sine**2, torch.ones_like(cosine), atol=1e-5, rtol=0
    )
    turned = torch.atan2(sine[1], cosine[1])
    last = 3 / (4 - shift)
    expected = 10000 ** -torch.linspace(0, last, 4).double()
    assert_close(turned, expected, rtol=1e-4, atol=1e-7)
    other = time_features(t, 8, cosine_first=False, rate_shift=shift)
    assert torch.equal(other.double(), torch.cat([sine, cosine], 1))


def test_dropout_acts_in_training_only():
    model = unet(dropout=0.5)
    x, t = pictures(1, 3, 8, 8), torch.ones(1).long()
    assert not torch.equal(model(x, t), model(x, t))
    model.eval()
    assert torch.equal(model(x, t), model(x, t))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_output_has_the_dtype_of_the_network(dtype):
    model = UNet(config()).to(dtype)
    x = torch.randn(1, 3, 8, 8, dtype=dtype)
    assert model(x, torch.ones(1).long()).dtype == dtype


def test_under_autocast_the_step_is_embedded_in_the_weights_dtype():
    model = UNet(config())
    with torch.autocast("cpu", torch.bfloat16):
        output = model(torch.randn(1, 3, 8, 8), torch.tensor([999]))
    assert output.isfinite().all()


def test_a_level_pairs_each_block_with_its_attention():
    level = Level(config(), [8, 8], 8, attends=2)
    assert [type(b).__name__ for _, b in level.steps()] == [
        "SelfAttention"
    ] * 2
    plain = Level(config(), [8, 8], 8, attends=0)
    assert [type(b) for _, b in plain.steps()] == [nn.Identity] * 2


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 3, 9, 8), "height and width must be multiples of 2"),
        ((1, 3, 8, 9), "height and width must be multiples of 2"),
        ((1, 1, 8, 8), r"xt must be \[B, 3, H, W\], got \[1, 1, 8, 8\]"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(shape, words):
    with pytest.raises(ValueError, match=words):
        unet()(pictures(*shape), torch.ones(1).long())


def test_steps_and_labels_that_do_not_fit_are_refused(plain_errors):
    x = pictures(2, 3, 8, 8)
    one, two = torch.ones(1).long(), torch.ones(2).long()
    with pytest.raises(ValueError, match="one step for each sample"):
        unet()(x, one)
    with pytest.raises(ValueError, match="takes no label"):
        unet()(x, two, two)
    with pytest.raises(ValueError, match="takes a label"):
        unet(classes=3)(x, two)
    with pytest.raises(ValueError, match=r"label must have shape \[2\]"):
        unet(classes=3)(x, two, one)


@pytest.mark.parametrize(
    ("choices", "name"),
    [
        ({"widths": ()}, "widths"),
        ({"widths": (0, 8)}, "widths"),
        ({"widths": (8, -8)}, "widths"),
        ({"widths": (7, 14), "groups": 7}, "widths"),
        ({"groups": 5}, "groups"),
        ({"attention": (2,)}, "attention"),
        ({"blocks": 0}, "blocks"),
        ({"norm": "instance"}, "norm"),
        ({"activation": "tanh"}, "activation"),
        ({"time": "film"}, "time"),
        ({"dropout": 1.0}, "dropout"),
        ({"padding": 2}, "padding"),
        ({"head_dim": 5}, "head_dim"),
        ({"size": (8, 8)}, "size"),
    ],
)
def test_a_configuration_out_of_range_is_named(choices, name, plain_errors):
    with pytest.raises(ValueError, match=f"^{name} must be "):
        config(**choices)
