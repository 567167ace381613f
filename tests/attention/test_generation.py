"""The cache gives what the whole text gives, in every variant; and what `generate` promises."""

import pytest
import torch
from torch import Tensor

from tangled.attention.generation import (
    Cache,
    choose,
    generate,
    places_of,
)
from tangled.attention.modern_block import LanguageModel, ModernConfig
from tangled.attention.pretrained import Translator
from tangled.attention.transformer import TransformerConfig
from tangled.workshop.statistics import standard_score

BASE = {"vocab": 37, "d_model": 24, "n_layers": 3, "n_heads": 6, "d_ff": 40}
VARIANTS = {
    "rotary": {},
    "grouped": {"n_kv_heads": 2},
    "one key head, wide": {"n_kv_heads": 1, "d_head": 6},
    "window": {"window": 3, "n_kv_heads": 3},
    "window of one": {"window": 1},
    "learned": {
        "positions": "learned",
        "norm": "layer",
        "feed_forward": "gelu_tanh",
        "max_length": 40,
    },
    "sinusoidal": {"positions": "sinusoidal"},
    "no positions": {"positions": "none"},
    "query-key norm": {"qk_norm": True, "n_kv_heads": 2},
    "neighbours": {"rotary_pairs": "neighbours"},
    "post-norm": {"norm_first": False},
    "parallel": {"block": "parallel"},
    "biases, untied": {"attention_bias": True, "tied": False},
}


def model(**changes: object) -> LanguageModel:
    """A decoder of random weights with logits of order one, in float64."""
    config = ModernConfig(**{**BASE, **changes})
    made = LanguageModel(config).double().eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in made.parameters():
            noise = torch.randn(p.shape, generator=generator).double()
            p.copy_(0.25 * noise if p.ndim > 1 else 1 + 0.1 * noise)
    return made


TOKENS = torch.randint(
    37, (3, 20), generator=torch.Generator().manual_seed(6)
)


def text(rows: object) -> Tensor:
    return torch.stack([*rows], 1)


@pytest.fixture(params=VARIANTS)
def variant(request) -> LanguageModel:
    return model(**VARIANTS[request.param])


@pytest.mark.verifies("thm-cache-exact")
@pytest.mark.parametrize(
    "cuts",
    [[20], [1] * 20, [7, 1, 5, 1, 6], [19, 1], [1, 19]],
    ids=["prefill", "step by step", "chunks", "and one", "one and"],
)
def test_chunks_with_a_cache_give_what_the_whole_text_gives(variant, cuts):
    cache, found, begin = Cache(3, 20), [], 0
    with torch.no_grad():
        whole = variant(TOKENS)
        for n in cuts:
            places = torch.arange(begin, begin + n)
            part = TOKENS[:, begin : begin + n]
            found.append(variant(part, places=places, cache=cache))
            begin += n
    assert cache.length == 20
    assert whole.std() > 0.3
    assert (torch.cat(found, 1) - whole).abs().max() < 1e-12


@pytest.mark.verifies("thm-cache-exact")
@pytest.mark.parametrize("cuts", [[1] * 20, [7, 1, 5, 1, 6], [2, 18]])
def test_chunks_of_a_padded_batch_give_what_the_whole_gives(variant, cuts):
    """The mask has all places; a cache with a window has not."""
    mask = torch.arange(20) >= torch.tensor([0, 6, 13])[:, None]
    places, cache, found, begin = places_of(mask), Cache(3, 20), [], 0
    with torch.no_grad():
        whole = variant(TOKENS, mask, places=places)
        for n in cuts:
            part = slice(begin, begin + n)
            now = {"places": places[:, part], "cache": cache}
            found.append(
                variant(TOKENS[:, part], mask[:, : begin + n], **now)
            )
            begin += n
    error = (torch.cat(found, 1) - whole).abs()
    assert error[mask].max() < 1e-12


@pytest.mark.verifies("thm-cache-exact")
@pytest.mark.parametrize("window", [1, 4, 7])
def test_a_cache_keeps_what_a_window_will_read_and_no_more(window):
    decoder, cache = model(window=window, n_kv_heads=2), Cache(3, 1000)
    with torch.no_grad():
        for begin, n in ((0, 3), (3, 9), (12, 1), (13, 1)):
            part = TOKENS[:, begin : begin + n]
            places = torch.arange(begin, begin + n)
            decoder(part, places=places, cache=cache)
            for own, _ in cache:
                kept = min(window - 1, begin + n)
                assert own.k.shape == own.v.shape == (3, 2, kept, 4)
    held = sum(own.k.untyped_storage().nbytes() for own, _ in cache)
    assert held <= 3 * (3 * 2 * window * 4) * 8
    assert cache.length == 14


@pytest.mark.verifies("prop-left-padding")
def test_a_padded_batch_gives_what_its_prompts_give_alone(variant):
    lengths = torch.tensor([20, 13, 1])
    mask = torch.arange(20) >= 20 - lengths[:, None]
    with torch.no_grad():
        batch = variant(TOKENS, mask, places=places_of(mask))
        for row, n in enumerate(lengths):
            alone = variant(TOKENS[row : row + 1, 20 - n :])[0]
            assert (batch[row, 20 - n :] - alone).abs().max() < 1e-12
    assert batch.isfinite().all()


@pytest.mark.verifies("prop-left-padding")
def test_a_padded_batch_writes_what_its_prompts_write_alone(variant):
    mask = torch.arange(8) >= torch.tensor([0, 3, 7])[:, None]
    batch = text(generate(variant, TOKENS[:, :8], n_new=16, mask=mask))
    for row in range(3):
        prompt = TOKENS[row : row + 1, :8][:, mask[row]]
        alone = text(generate(variant, prompt, n_new=16))
        assert torch.equal(alone[0], batch[row])


def test_generate_is_the_plain_loop_without_a_cache(variant):
    tokens = TOKENS[:, :5]
    with torch.no_grad():
        for _ in range(12):
            best = variant(tokens)[:, -1:].argmax(-1)
            tokens = torch.cat([tokens, best], 1)
    found = text(generate(variant, TOKENS[:, :5], n_new=12))
    assert torch.equal(found, tokens[:, 5:])


@pytest.fixture
def translator() -> Translator:
    torch.manual_seed(7)
    config = TransformerConfig(37, 24, 2, 4, 40, 64, dropout=0.0)
    made = Translator(config).double().eval()
    torch.nn.init.normal_(made.bias)
    return made


def test_a_translation_is_the_plain_loop_without_a_cache(translator):
    mask = torch.arange(20) < torch.tensor([20, 11, 4])[:, None]
    tokens = torch.full((3, 1), 36)
    with torch.no_grad():
        for _ in range(10):
            logits = translator(TOKENS, tokens, mask)
            best = logits[:, -1:].argmax(-1)
            tokens = torch.cat([tokens, best], 1)
    found = text(generate(translator, TOKENS, n_new=10, mask=mask, start=36))
    assert torch.equal(found, tokens[:, 1:])


def test_the_memory_of_a_translation_is_read_once(translator):
    calls = []
    layer = translator.decoder.blocks[0].cross.w_k
    layer.register_forward_hook(lambda *_: calls.append(1))
    [*generate(translator, TOKENS, n_new=6, start=36)]
    assert len(calls) == 1


def test_rows_stop_on_their_own_and_repeat_their_stop():
    decoder = model()
    free = text(generate(decoder, TOKENS, n_new=20))
    stop = int(free[1, 4])
    rows = text(generate(decoder, TOKENS, n_new=20, stop=[stop]))
    for row, mine in enumerate(rows):
        ends = (free[row] == stop).nonzero()
        length = int(ends[0]) + 1 if len(ends) else rows.shape[1]
        assert torch.equal(mine[:length], free[row, :length])
        assert (mine[length:] == stop).all()


def test_it_ends_with_the_last_row():
    decoder = model()
    free = text(generate(decoder, TOKENS, n_new=20))
    stop = [int(row[3]) for row in free]
    rows = text(generate(decoder, TOKENS, n_new=20, stop=stop))
    first = [
        int(torch.isin(row, torch.tensor(stop)).nonzero()[0]) for row in free
    ]
    assert rows.shape[1] == max(first) + 1


def test_a_stream_can_be_left_and_leaves_gradients_on():
    decoder = model()
    stream = generate(decoder, TOKENS, n_new=1000)
    for token, _ in zip(stream, range(3), strict=False):
        assert token.shape == (3,)
        assert torch.is_grad_enabled()
    assert not any(p.grad is not None for p in decoder.parameters())


def test_draws_have_the_distribution_of_the_model():
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(8)
    for temperature in (0.5, 1.0, 3.0):
        drawn = choose(logits.expand(40_000, 4), temperature, generator)
        p = (logits[0] / temperature).softmax(0)
        for token in range(4):
            hits = (drawn == token).double()
            share = p[token].item()
            std = (share * (1 - share)) ** 0.5
            assert abs(standard_score(hits, share, std)) < 5
    assert (choose(logits.expand(9, 4)) == 3).all()


def test_draws_follow_the_generator():
    decoder = model()

    def draw(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return text(
            generate(
                decoder,
                TOKENS,
                n_new=9,
                temperature=1.0,
                generator=generator,
            )
        )

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_half_precision_is_drawn_in_float32():
    logits = torch.zeros(2000, 5, dtype=torch.bfloat16)
    drawn = choose(logits, 1.0, torch.Generator().manual_seed(9))
    assert drawn.unique().numel() == 5


class TestRefusals:
    @pytest.mark.parametrize("window", [None, 4])
    def test_a_full_cache(self, window):
        decoder = model(window=window)
        cache = Cache(3, 19)
        with pytest.raises(ValueError, match="19 places, and 20 are needed"):
            decoder(TOKENS, cache=cache)

    @pytest.mark.parametrize("window", [None, 4])
    def test_another_batch(self, window):
        decoder, cache = model(window=window), Cache(3, 30)
        with torch.no_grad():
            decoder(TOKENS, cache=cache)
            with pytest.raises(ValueError, match="of 3 rows, and 1 came"):
                decoder(
                    TOKENS[:1, :5], places=torch.arange(20, 25), cache=cache
                )

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"n_new": 0}, "at least 1"),
            ({"temperature": -1.0}, "not be below 0"),
            ({"temperature": float("nan")}, "not be below 0"),
            ({"start": 3}, "a model with an encoder"),
            (
                {"mask": torch.arange(20).expand(3, 20) < 15},
                "padded on the left",
            ),
            (
                {"mask": torch.arange(20).expand(3, 20) != 5},
                "padded on the left",
            ),
        ],
    )
    def test_arguments(self, options, sentence):
        with pytest.raises(ValueError, match=sentence):
            next(generate(model(), TOKENS, **{"n_new": 3, **options}))

    def test_a_translation_without_a_start(self, translator):
        with pytest.raises(ValueError, match="a model with an encoder"):
            next(generate(translator, TOKENS, n_new=3))

    def test_more_text_than_positions(self):
        decoder = model(**VARIANTS["learned"])
        assert len([*generate(decoder, TOKENS, n_new=21)]) == 21
        with pytest.raises(ValueError, match="40 positions, and 41"):
            next(generate(decoder, TOKENS, n_new=22))

    def test_training_mode(self):
        with pytest.raises(ValueError, match=r"call model.eval\(\)"):
            next(generate(model().train(), TOKENS, n_new=3))

    def test_tokens_of_another_tokenizer(self):
        with pytest.raises(IndexError):
            next(generate(model(), TOKENS + 37, n_new=3))


@pytest.mark.gpu
def test_on_a_gpu_nothing_is_read_back_without_stops():
    decoder = model(**VARIANTS["learned"]).float().cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        rows = [*generate(decoder, TOKENS.cuda(), n_new=4)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with torch.no_grad():
        first = decoder(TOKENS.cuda())[:, -1].argmax(-1)
    assert torch.equal(rows[0], first)
