"""Laws of pictures as data, of folders and of the command line, and what they refuse."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from tangled.diffusion.ddim import ddim_sample
from tangled.diffusion.ddpm import ddpm_sample, halves
from tangled.diffusion.elbo import bits_per_dim, posterior_var, vlb
from tangled.diffusion.pictures import (
    PictureFolder,
    Pipeline,
    bound_in_bits,
    command,
    load_pipeline,
    picture_grid,
    save_pipeline,
)
from tangled.diffusion.prediction import denoiser
from tangled.diffusion.schedule import (
    Schedule,
    schedule_from_config,
    schedule_to_config,
    step_list,
    zero_terminal_snr,
)
from tangled.diffusion.unet import (
    UNet,
    UNetConfig,
    load_unet,
    save_unet,
    their_config,
    unet_config,
)
from tangled.foundations.training import checkpoints
from tangled.workshop.checkpoint import CheckpointError, read_tensors


def unet(**choices):
    torch.manual_seed(0)
    plain = {"widths": (8, 16), "blocks": 1, "groups": 4, "head_dim": None}
    return UNet(UNetConfig(**plain | choices)).eval()


def pixels(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Five pictures of 8 x 12, one of them in a folder below."""
    place = tmp_path / "pictures"
    (place / "below").mkdir(parents=True)
    for i in range(4):
        Image.fromarray(pixels(8, 12, i)).save(place / f"{i}.png")
    Image.fromarray(pixels(8, 12, 4)).save(place / "below" / "4.PNG")
    (place / "notes.txt").write_text("no picture")
    return place


def test_a_folder_gives_back_the_bytes(folder):
    data = PictureFolder(folder)
    assert len(data) == 5
    for i in range(4):
        expected = torch.from_numpy(pixels(8, 12, i)).permute(2, 0, 1)
        back = ((data[i] + 1) * 127.5).round().byte()
        assert torch.equal(back, expected)
        assert data[i].dtype == torch.float32


@pytest.mark.parametrize("ending", PictureFolder.ENDINGS)
def test_every_ending_that_is_named_is_read(ending, tmp_path):
    assert {".png", ".jpg", ".jpeg", ".webp", ".bmp"} == set(
        PictureFolder.ENDINGS
    )
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / f"a{ending}")
    (picture,) = PictureFolder(tmp_path)
    assert_close(
        picture.mean((1, 2)), torch.tensor([1.0, -1, -1]), atol=0.03, rtol=0
    )


def test_the_range_is_from_minus_one_to_one(tmp_path):
    for name, level in (("a", 0), ("b", 255)):
        plain = np.full((4, 4, 3), level, np.uint8)
        Image.fromarray(plain).save(tmp_path / f"{name}.png")
    data = PictureFolder(tmp_path)
    assert (data[0] == -1).all()
    assert (data[1] == 1).all()


def test_a_size_cuts_the_middle_and_scales(tmp_path):
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = 255  # the middle square is white
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "high.png")
    for picture in PictureFolder(tmp_path, size=2):
        assert picture.shape == (3, 2, 2)
        assert (picture == 1).all()


def test_grey_is_one_channel_and_other_modes_are_converted(tmp_path):
    Image.fromarray(pixels(4, 4)).convert("P").save(tmp_path / "p.png")
    Image.fromarray(pixels(4, 4)).convert("RGBA").save(tmp_path / "q.png")
    Image.fromarray(pixels(4, 4)).convert("L").save(tmp_path / "r.png")
    assert {x.shape for x in PictureFolder(tmp_path)} == {(3, 4, 4)}
    assert {x.shape for x in PictureFolder(tmp_path, None, 1)} == {(1, 4, 4)}


def test_a_photograph_is_read_as_the_camera_was_held(tmp_path):
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, :4] = 255  # the left half is white
    photograph = Image.fromarray(wide)
    note = photograph.getexif()
    note[0x0112] = 6  # a quarter turn to the right
    photograph.save(tmp_path / "a.png", exif=note)
    (picture,) = PictureFolder(tmp_path)
    assert picture.shape == (3, 8, 4)
    assert (picture[:, :4] == 1).all()  # what was left is above
    assert (picture[:, 4:] == -1).all()
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "b.png")
    assert {x.shape for x in PictureFolder(tmp_path)} == {(3, 8, 4)}


def test_what_would_be_cut_to_white_is_refused(tmp_path):
    deep = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4000
    Image.fromarray(deep).save(tmp_path / "deep.png")
    for channels in (1, 3):
        with pytest.raises(
            ValueError, match=r"deep.png has more than 8 bits"
        ):
            PictureFolder(tmp_path, channels=channels)


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_other_channels_than_grey_and_colour_are_refused(folder, channels):
    with pytest.raises(ValueError, match="channels must be 1 or 3, got"):
        PictureFolder(folder, channels=channels)


def test_folders_that_cannot_be_used_are_refused(folder, tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="has no files"):
        PictureFolder(tmp_path / "nothing")
    for place in (tmp_path / "nowhere", folder / "0.png"):
        with pytest.raises(ValueError, match="is not a folder"):
            PictureFolder(place)
    Image.fromarray(pixels(9, 12)).save(folder / "other.png")
    with pytest.raises(ValueError, match=r"other.png is 12 x 9|12 x 8 and"):
        PictureFolder(folder)
    assert len(PictureFolder(folder, 8)) == 6
    (folder / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\nand no more")
    with pytest.raises(ValueError, match=r"torn.png cannot be read"):
        PictureFolder(folder, 8)


def test_a_picture_that_is_cut_off_is_named_when_it_is_read(folder):
    content = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"2.png cannot be read"):
        PictureFolder(folder)[2]
    # a chunk that says to be shorter than it is
    at = content.index(b"IDAT")
    short = int.from_bytes(content[at - 4 : at], "big") - 100
    torn = content[: at - 4] + short.to_bytes(4, "big") + content[at:]
    (folder / "2.png").write_bytes(torn)
    with pytest.raises(ValueError, match=r"2.png cannot be read"):
        PictureFolder(folder)[2]


@pytest.mark.usefixtures("plain_errors")
@pytest.mark.parametrize("size", [0, -3, 3.5, "8"])
def test_sizes_that_no_picture_has_are_refused(size, folder):
    with pytest.raises(ValueError, match="size must be a whole number > 0"):
        PictureFolder(folder, size)


@pytest.mark.usefixtures("plain_errors")
@pytest.mark.parametrize(
    ("shape", "columns"),
    [((0, 3, 4, 4), 8), ((1, 3, 4, 4), 0), ((1, 2, 4, 4), 8)],
)
def test_grids_of_nothing_are_refused(shape, columns):
    with pytest.raises(ValueError, match="a grid needs a column, a picture"):
        picture_grid(torch.zeros(shape), columns)


@pytest.mark.parametrize(("count", "size"), [(1, (4, 4)), (5, (16, 10))])
def test_a_grid_shows_every_picture(count, size):
    x0 = torch.linspace(-1, 1, count).reshape(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    grid = np.asarray(picture_grid(x0, columns=3))
    assert grid.shape == (size[1] if count > 1 else 4, size[0], 3)
    for i in range(count):
        top, left = i // 3 * 6, i % 3 * 6
        level = round((x0[i, 0, 0, 0].item() + 1) * 127.5)
        assert (grid[top : top + 4, left : left + 4] == level).all()
    if count > 1:
        assert (grid[4:6] == 255).all()
        assert (grid[:, 4:6] == 255).all()


def test_a_grid_clips_and_repeats_grey():
    grid = np.asarray(picture_grid(torch.full((1, 1, 2, 2), 3.0)))
    assert grid.shape == (2, 2, 3)
    assert (grid == 255).all()


CONFIGS = [
    {},
    {"channels": 1, "outputs": 2, "size": 28, "classes": 10},
    {"attention": (0, 1), "time": "scale_shift", "activation": "gelu"},
    {"padding": 0, "cosine_first": False, "rate_shift": 1, "eps": 1e-6},
    {"blocks": 3, "dropout": 0.1, "head_dim": 4},
]


@pytest.mark.parametrize("choices", CONFIGS, ids=str)
def test_a_configuration_survives_the_way_to_disk_and_back(choices):
    config = unet(**choices).config
    text = json.dumps(their_config(config))
    back = unet_config(json.loads(text))
    assert back.outputs == (config.outputs or config.channels)
    assert their_config(back) == json.loads(text)


@pytest.mark.parametrize(
    "choices",
    [{"norm": "layer"}, {"skips": False}, {"time": "none"}],
    ids=str,
)
def test_what_they_do_not_have_is_not_written(choices, tmp_path):
    name = next(iter(choices))
    with pytest.raises(ValueError, match=f"no such {name} = "):
        save_unet(unet(**choices), tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]},
            "down_block",
        ),
        (
            {"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]},
            "up_block_types",
        ),
        ({"mid_block_type": None}, "mid_block_type = None"),
        ({"add_attention": False}, "add_attention = False"),
        (
            {"time_embedding_type": "fourier"},
            "time_embedding_type = 'fourier'",
        ),
        ({"resnet_time_scale_shift": "ada_group"}, "resnet_time_scale_shift"),
        ({"class_embed_type": "identity"}, "class_embed_type = 'identity'"),
        ({"attn_norm_num_groups": 4}, "attn_norm_num_groups = 4"),
        ({"colour": "red"}, r"colour \(unknown\)"),
    ],
)
def test_what_this_network_cannot_do_is_refused_by_name(change, words):
    theirs = their_config(unet().config) | change
    with pytest.raises(ValueError, match=f"no U-Net of this book .*{words}"):
        unet_config(theirs)


def test_what_is_missing_is_named_with_the_folder(tmp_path):
    save_unet(unet(), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    del config["block_out_channels"]
    path.write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"model: .*block_out_channels \(miss"
    ):
        load_unet(tmp_path / "model")


def test_a_network_survives_the_way_to_disk_and_back(tmp_path):
    model = unet(attention=(1,), classes=3)
    save_unet(model, tmp_path / "model")
    back = load_unet(tmp_path / "model")
    assert not back.training
    for name, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], value)
    with pytest.raises(CheckpointError, match="exists"):
        save_unet(model, tmp_path / "model")


def test_weights_of_another_configuration_are_refused(tmp_path):
    save_unet(unet(), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text()) | {"block_out_channels": [8, 24]}
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"do not match.*misshaped"):
        load_unet(tmp_path / "model")


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule.linear(1000),
        Schedule.cosine(77),
        Schedule.scaled_linear(10),
        Schedule.from_betas([0.3]),
        zero_terminal_snr(Schedule.scaled_linear(1000)),
    ],
    ids=["linear", "cosine", "scaled", "one step", "no signal"],
)
def test_a_schedule_survives_the_way_to_disk_and_back(schedule):
    config = json.loads(json.dumps(schedule_to_config(schedule)))
    assert torch.equal(schedule_from_config(config).beta, schedule.beta)


@pytest.mark.parametrize("name", ["linear", "squaredcos_cap_v2"])
def test_a_schedule_is_rescaled_if_its_file_says_so(name):
    plain = {"beta_schedule": name, "num_train_timesteps": 100}
    found = schedule_from_config(plain | {"rescale_betas_zero_snr": True})
    expected = zero_terminal_snr(schedule_from_config(plain))
    assert torch.equal(found.beta, expected.beta)
    config = schedule_to_config(found)
    assert config["rescale_betas_zero_snr"] is True
    assert config["timestep_spacing"] == "trailing"
    assert "timestep_spacing" not in schedule_to_config(Schedule.linear(9))


def test_the_defaults_are_those_of_the_library():
    assert_close(schedule_from_config({}).beta, Schedule.linear(1000).beta)
    found = schedule_from_config(
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 50}
    )
    assert torch.equal(found.beta, Schedule.cosine(50).beta)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"colour": 1, "beta_end": 0.1},
            "unknown keys of a schedule: colour",
        ),
        ({"beta_schedule": "laplace"}, "unknown beta_schedule 'laplace'"),
        (
            {"trained_betas": [0.1, 0.2], "num_train_timesteps": 5},
            "num_train_timesteps is 5, but there are 2 trained_betas",
        ),
    ],
)
def test_a_schedule_that_is_not_known_is_refused(config, words):
    with pytest.raises(ValueError, match=words):
        schedule_from_config(config)


def pipeline(**choices):
    return Pipeline(unet(size=8), Schedule.cosine(30), **choices)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_a_pipeline_survives_the_way_to_disk_and_back(
    prediction, variance, tmp_path
):
    mine = pipeline(prediction=prediction, variance=variance, clip=False)
    save_pipeline(mine, tmp_path / "model")
    back = load_pipeline(tmp_path / "model")
    assert (back.prediction, back.variance, back.clip) == (
        prediction,
        variance,
        False,
    )
    assert torch.equal(back.schedule.beta, mine.schedule.beta)


@pytest.mark.usefixtures("plain_errors")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prediction_type": "flow"}, "prediction_type 'flow'"),
        ({"variance_type": "learned"}, "variance_type 'learned'"),
        ({"thresholding": True}, "thresholding"),
        ({"clip_sample_range": 2.0}, "clip_sample_range"),
        ({"colour": 1}, "colour"),
        ({"trained_betas": None, "num_train_timesteps": "x"}, "T = 'x'"),
    ],
)
def test_conventions_that_are_not_ours_are_refused(change, words, tmp_path):
    save_pipeline(pipeline(), tmp_path / "model")
    file = tmp_path / "model/scheduler/scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=f"scheduler_config.json: .*{words}"):
        load_pipeline(tmp_path / "model")
    for torn in ("{", "7"):
        file.write_text(torn)
        with pytest.raises(
            CheckpointError, match=r"cannot read .*scheduler_c"
        ):
            load_pipeline(tmp_path / "model")


def test_a_prediction_that_they_do_not_know_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="cannot predict 'score'"):
        save_pipeline(pipeline(prediction="score"), tmp_path / "model")


def test_words_that_no_pipeline_has_are_refused_before_they_are_used():
    with pytest.raises(ValueError, match="prediction must be one of eps"):
        pipeline(prediction="noise")
    with pytest.raises(ValueError, match="variance must be one of small"):
        pipeline(variance="middling")


def test_the_bound_refuses_noise_where_it_says_nothing():
    q = zero_terminal_snr(Schedule.linear(20, 1e-3, 0.2))
    x0 = torch.full((1, 3, 8, 8), -1.0)
    with pytest.raises(ValueError, match="x0 or v, got 'eps'"):
        bound_in_bits(Pipeline(unet(size=8), q), x0)
    assert bound_in_bits(Pipeline(unet(size=8), q, "v"), x0).isfinite().all()


@pytest.mark.verifies("eq-bits")
@pytest.mark.parametrize("variance", ["small", "large"])
def test_the_bound_of_a_pipeline_is_that_of_its_denoiser(variance):
    mine = pipeline(variance=variance, clip=False)
    x0 = torch.full((2, 3, 8, 8), -1.0)
    q = mine.schedule
    sigma = (posterior_var(q) if variance == "small" else q.beta).sqrt()
    with torch.no_grad():
        expected = vlb(
            denoiser(mine.network, q),
            x0,
            q,
            sigma,
            generator=torch.Generator().manual_seed(0),
        )
    for chunk in (1, 7):
        found = bound_in_bits(
            mine, x0, generator=torch.Generator().manual_seed(0), chunk=chunk
        )
        assert_close(found, bits_per_dim(expected, 192), rtol=1e-4, atol=0)


class Shared(torch.nn.Module):
    """A network of twice the channels, whose share is fixed."""

    def __init__(self, network, share):
        super().__init__()
        self.network, self.share = network, share

    def forward(self, xt, t):
        said = self.network(xt, t)
        return torch.cat([said, torch.full_like(said, self.share)], 1)


@pytest.mark.verifies("eq-bits", "eq-learned-variance")
def test_a_learned_variance_at_the_end_of_its_range_is_the_fixed_one():
    fixed, x0 = pipeline(variance="large"), torch.full((1, 3, 8, 8), 1.0)
    learned = Pipeline(
        Shared(fixed.network, 1.0), fixed.schedule, variance="learned"
    )
    found, expected = (
        bound_in_bits(p, x0, generator=torch.Generator().manual_seed(0))
        for p in (learned, fixed)
    )
    assert_close(found, expected, rtol=1e-4, atol=0)


def test_the_bound_is_taken_in_evaluation_mode():
    network, x0 = unet(size=8, dropout=0.5), torch.full((1, 3, 8, 8), 1.0)
    mine = Pipeline(network.train(), Schedule.cosine(5))
    first, second = (
        bound_in_bits(mine, x0, generator=torch.Generator().manual_seed(0))
        for _ in range(2)
    )
    assert torch.equal(first, second)
    assert network.training


RUN = ["--batch-size", "4", "--widths", "8", "16", "--T", "20"]


@pytest.mark.parametrize("learned", [False, True])
def test_two_commands_train_and_draw(folder, tmp_path, learned, capsys):
    extra = ["--learned-variance"] if learned else []
    run = tmp_path / "run"
    start = ["train", str(run), "--data", str(folder), "--size", "8"]
    assert command([*start, "--steps", "3", *RUN, *extra]) == 0
    assert "model: 3 steps, loss " in capsys.readouterr().out
    model = load_pipeline(run / "model")
    config = model.network.config
    assert (config.widths, config.size) == ((8, 16), 8)
    assert (config.channels, config.outputs) == (3, 3 * (1 + learned))
    assert config.attention == (1,)
    assert (model.prediction, model.clip) == ("v", True)
    assert model.variance == ("learned" if learned else "small")
    assert torch.equal(model.schedule.beta, Schedule.cosine(20).beta)
    for sampler in ("ddim", "ddpm"):
        grid = tmp_path / f"{sampler}.png"
        options = ["--steps", "4", "--count", "5", "--sampler", sampler]
        assert (
            command(["sample", str(run / "model"), str(grid), *options]) == 0
        )
        with Image.open(grid) as picture:
            assert picture.size == (28, 18)
    again = tmp_path / "again.png"
    command(["sample", str(run / "model"), str(again), *options])
    assert again.read_bytes() == grid.read_bytes()
    assert command([*start, "--steps", "3", *RUN, *extra]) == 1
    assert "this run has ended" in capsys.readouterr().err


def test_the_average_of_the_weights_is_what_is_written(folder, tmp_path):
    run = tmp_path / "run"
    start = ["train", str(run), "--data", str(folder), "--size", "8"]
    command([*start, "--steps", "3", *RUN])
    kept = load_unet(run / "model" / "unet")
    last = checkpoints(run / "run")[-1]
    average = read_tensors(last / "average")
    plain = read_tensors(last / "model")
    for name, value in kept.state_dict().items():
        assert torch.equal(value, average[name])
    assert any(not torch.equal(average[n], plain[n]) for n in plain)


def test_a_run_that_is_stopped_goes_on(folder, tmp_path):
    run = tmp_path / "run"
    line = [sys.executable, "-m", "tangled.diffusion.ddpm", "train", str(run)]
    line += ["--data", str(folder), "--size", "8", *RUN, "--save-every", "5"]
    line += ["--steps", "24"]
    started = subprocess.Popen(
        line,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.default_int_handler
        ),
    )
    deadline = time.monotonic() + 120
    while not (run / "run").exists() or len(checkpoints(run / "run")) < 2:
        assert time.monotonic() < deadline
        assert started.poll() is None
        time.sleep(0.05)
    os.kill(started.pid, signal.SIGINT)
    _, told = started.communicate(timeout=120)
    assert started.returncode == 130
    assert "stopped after step" in told
    assert not (run / "model").exists()
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    assert "24 steps" in done.stdout
    assert (run / "model" / "model_index.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample", "nowhere", "grid.png"], "nowhere"),
        (["train", "run", "--data", "nowhere"], "nowhere is not a folder"),
        (["train", "run", "--data", "."], ". has no files .png"),
        (["train", "run", "--batch-size", "5000"], "batch_size"),
        (["train", "run", "--ema", "2"], "ema_decay must lie in [0, 1)"),
        (["train", "run", "--lr", "-1"], "learning rate"),
        (["train", "run", "--widths", "9"], "widths must be"),
        (["train", "run", "--size", "8"], "--size and --grey are for a fold"),
        (["train", "run", "--grey"], "--size and --grey are for a folder"),
        (
            ["train", "run", "--schedule", "linear", "--T", "100"],
            "--T 100 ends with 0.60 of the signal",
        ),
        (
            ["train", "run", "--widths", "8", "8", "8", "8", "8"],
            "5 widths halve pictures 4 times, but those of digits have",
        ),
    ],
)
def test_mistakes_on_the_command_line_are_one_sentence(
    arguments, words, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert command(arguments) == 1
    told = capsys.readouterr().err.strip()
    assert words in told
    assert "\n" not in told
    assert "Traceback" not in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "run", "--schedule", "flat"], "argument --schedule"),
        (["train", "run", "--prediction", "noise"], "argument --prediction"),
        # diffusers has no such network, and one would learn it after a day
        (["train", "run", "--prediction", "score"], "argument --prediction"),
        (["train", "run", "--precision", "int8"], "argument --precision"),
        (["train", "run", "--steps", "0"], "argument --steps: must be at"),
        (["train", "run", "--T", "0"], "argument --T: must be at least 1"),
        (["train", "run", "--save-every", "0"], "argument --save-every"),
        (["train", "run", "--widths", "8", "-8"], "argument --widths"),
        (["train", "run", "--size", "0"], "argument --size: must be at"),
        (["sample", "model", "a.png", "--count", "0"], "argument --count"),
        (["sample", "model", "a.png", "--count", "-1"], "got -1"),
        (["sample", "model", "a.png", "--size", "-8"], "argument --size"),
        (["sample", "model", "a.png", "--steps", "x"], "argument --steps"),
    ],
)
def test_arguments_that_cannot_be_are_named(arguments, words, capsys):
    with pytest.raises(SystemExit) as stop:
        command(arguments)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--prediction", "eps"], "prediction v, this one has eps"),
        (["--learned-variance"], "learned False, this one has True"),
        (["--schedule", "linear", "--T", "1000"], "schedule 20 steps, SNR"),
        (["--T", "21"], "this one has 21 steps, SNR"),
        (["--widths", "8", "24"], "misshaped"),
        (["--lr", "0.5"], "lr of parameter group 0"),
        (["--seed", "1"], "seed 0, this one has 1"),
    ],
)
def test_a_run_of_another_loss_does_not_go_on(
    change, words, folder, tmp_path, capsys
):
    start = ["train", str(tmp_path / "run"), "--data", str(folder)]
    start += ["--size", "8", "--steps", "3", *RUN]
    assert command(start) == 0
    shutil.rmtree(tmp_path / "run" / "model")  # as if it had been stopped
    assert command([*start, *change]) == 1
    assert words in capsys.readouterr().err
    assert command([*start, "--steps", "4"]) == 1  # another cosine
    assert command(start) == 0


@pytest.mark.parametrize("mode", [[], ["train"], ["sample"]])
def test_help_explains_every_option(mode, capsys):
    with pytest.raises(SystemExit) as stop:
        command([*mode, "--help"])
    assert stop.value.code == 0
    told = capsys.readouterr().out
    assert "usage: python -m tangled.diffusion.ddpm" in told


def test_the_sampler_of_the_command_is_that_of_the_package(tmp_path):
    mine = pipeline()
    save_pipeline(mine, tmp_path / "model")
    grid = tmp_path / "grid.png"
    line = ["sample", str(tmp_path / "model"), str(grid), "--count", "4"]
    command([*line, "--sampler", "ddpm", "--steps", "30", "--seed", "5"])
    generator = torch.Generator().manual_seed(5)
    noise = torch.empty(4, 3, 8, 8).normal_(generator=generator)
    x0 = ddpm_sample(
        mine.network,
        noise,
        mine.schedule,
        range(30, 0, -1),
        clip=True,
        generator=generator,
    )
    picture_grid(x0, 2).save(tmp_path / "other.png")
    assert grid.read_bytes() == (tmp_path / "other.png").read_bytes()


def test_the_command_draws_with_ddim_and_without_fresh_noise(tmp_path):
    mine = pipeline()
    save_pipeline(mine, tmp_path / "model")
    grid = tmp_path / "grid.png"
    command(["sample", str(tmp_path / "model"), str(grid), "--steps", "7"])
    generator = torch.Generator().manual_seed(0)
    noise = torch.empty(16, 3, 8, 8).normal_(generator=generator)
    x0 = ddim_sample(
        mine.network, noise, mine.schedule, step_list(30, 7), clip=True
    )
    picture_grid(x0, 4).save(tmp_path / "other.png")
    assert grid.read_bytes() == (tmp_path / "other.png").read_bytes()


def test_the_share_of_a_learned_network_is_its_second_half():
    said, share = halves(
        Shared(unet(), -1.0)(torch.zeros(1, 3, 8, 8), torch.ones(1).long())
    )
    assert said.shape == share.shape
    assert (share == 0).all()


def test_rectangles_ask_for_a_size_and_sizes_for_enough_halvings(
    folder, tmp_path, capsys
):
    start = ["train", str(tmp_path / "run"), "--data", str(folder), *RUN]
    assert command(start) == 1
    assert "pictures of 12 x 8: name a size" in capsys.readouterr().err
    assert command([*start, "--size", "9"]) == 1
    told = capsys.readouterr().err
    assert "2 widths halve pictures 1 times" in told
    assert "have the side 9: name another --size" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--eta", "0", "--sampler", "ddpm"], "--eta is for --sampler ddim"),
        (["--steps", "31"], "1 <= n <= T, got n = 31, T = 30"),
        (["--steps", "9", "--size", "7"], "must be multiples of 2"),
        (["--steps", "9", "--eta", "2"], "eta must"),
    ],
)
def test_mistakes_when_drawing_are_one_sentence(
    options, words, tmp_path, capsys
):
    save_pipeline(pipeline(), tmp_path / "model")
    line = ["sample", str(tmp_path / "model"), str(tmp_path / "grid.png")]
    assert command([*line, *options]) == 1
    told = capsys.readouterr().err.strip()
    assert words in told.splitlines()[-1]
    assert "Traceback" not in told


def test_an_ending_that_is_no_picture_is_refused_before_drawing(
    tmp_path, capsys
):
    save_pipeline(pipeline(), tmp_path / "model")
    line = ["sample", str(tmp_path / "model"), str(tmp_path / "grid.txt")]
    assert command(line) == 1
    assert "no ending of a picture" in capsys.readouterr().err
    line = ["sample", str(tmp_path / "model"), str(tmp_path / "no" / "a.png")]
    assert command(line) == 1
    assert "no is not a folder" in capsys.readouterr().err
    line = ["sample", str(tmp_path / "model"), str(tmp_path / "GRID.PNG")]
    assert command([*line, "--steps", "2", "--count", "1"]) == 0
