"""From prompts to tensors: against the plain encoder, diffusers' own pipeline, and a slow twin."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsd_lib.core.errors import UserError
from fastsd_lib.formats.parts import encode_prompts, load_parts
from fastsd_lib.generation.chunks import EmbeddingTable, read_chunks
from fastsd_lib.generation.conditioning import encode
from fastsd_lib.generation.prompt_language import BREAK, Piece, attention
from fastsd_lib.generation.request import GenerationRequest
from fastsd_lib.generation.text_reader import EMPHASES, EncodingCache, TextReader
from fastsd_lib.models import registry

PLAIN = (
    "",
    "a photo of a red star",
    "a photo of a blue cat, on a green background!",
    "star " * 75,
    "Éá 猫 🐱",
)


@pytest.fixture(scope="module")
def parts():
    """The embedded model: its tokenizer and text encoder have learned what words mean."""
    return load_parts(registry.base_model(), torch.device("cpu"), torch.float32)


def ask(prompt: str, negative: str = "", steps: int = 10, **more) -> GenerationRequest:
    return GenerationRequest(prompt, negative, inference_steps=steps, **more)


def only(parts, prompt: str, step: int = 0, clip_skip: int = 1, **more) -> torch.Tensor:
    [(_, hidden)], _ = encode(parts, ask(prompt, clip_skip=clip_skip), **more).at(step, 10)
    return hidden.hidden


@pytest.mark.parametrize("prompt", PLAIN)
def test_a_plain_prompt_is_bit_for_bit_what_the_plain_encoder_gives(parts, prompt):
    said = encode(parts, ask(prompt, "a cat"))
    [(weight, hidden)], negative = said.at(0, 10)
    assert weight == 1
    assert torch.equal(hidden.hidden, encode_prompts(parts, [prompt])[0])
    assert torch.equal(negative.hidden, encode_prompts(parts, ["a cat"])[0])
    assert said.warnings == [] and said.chunks(10) == 1


def test_a_plain_prompt_is_what_diffusers_own_pipeline_encodes(parts):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(registry.base_model().path)
    for prompt in PLAIN:
        positive, negative = pipeline.encode_prompt(prompt, "cpu", 1, True, "a dog")
        [(_, hidden)], without = encode(parts, ask(prompt, "a dog")).at(0, 10)
        assert torch.equal(hidden.hidden, positive[0])
        assert torch.equal(without.hidden, negative[0])
    encoder = pipeline.text_encoder
    if not hasattr(encoder, "text_model"):  # diffusers looks for a name that newer transformers gave up
        object.__setattr__(encoder, "text_model", encoder)
    skipped, _ = pipeline.encode_prompt(PLAIN[1], "cpu", 1, False, clip_skip=1)
    assert torch.allclose(only(parts, PLAIN[1], clip_skip=2), skipped[0], atol=1e-6)  # theirs counts from 0


def slow_hidden(parts, text: str, clip_skip: int = 1) -> torch.Tensor:
    """The rules one after the other: 75 tokens at a time, weights, mean restored. No commas near the end."""
    tokenizer, model = parts.tokenizer, parts.text_encoder
    words: list[tuple[int, float]] = []
    for piece in attention(text):
        if piece is BREAK:
            words += [(tokenizer.pad_token_id, 1.0)] * (-len(words) % 75 or 75)
        else:
            words += [(token, piece.weight) for token in tokenizer(piece.text).input_ids[1:-1]]
    results = []
    for first in range(0, max(len(words), 1), 75):
        some = words[first : first + 75]
        ids = [tokenizer.bos_token_id, *(token for token, _ in some)]
        ids += [tokenizer.pad_token_id] * (77 - len(ids))
        weights = [1.0, *(weight for _, weight in some)]
        weights += [1.0] * (77 - len(weights))
        with torch.no_grad():
            states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
            hidden = model.final_layer_norm(states[-clip_skip])[0]
        before = sum(float(value) for value in hidden.flatten()) / hidden.numel()
        hidden = torch.stack([row * weight for row, weight in zip(hidden, weights, strict=True)])
        after = sum(float(value) for value in hidden.flatten()) / hidden.numel()
        results.append(hidden * (before / after))
    return torch.cat(results)


@pytest.mark.parametrize("clip_skip", [1, 2])
@pytest.mark.parametrize(
    "text",
    [
        "a (red:1.4) star on [a blue] background",
        "a photo of a red star " * 20,
        "a (cat BREAK on a green:0.6) background",
        "((photo)) of " + "a red star and a blue cat " * 14,
    ],
)
def test_weights_chunks_and_clip_skip_equal_a_slow_twin(parts, text, clip_skip):
    hidden = only(parts, text, clip_skip=clip_skip)
    twin = slow_hidden(parts, text, clip_skip)
    assert hidden.shape == twin.shape
    assert torch.allclose(hidden, twin, atol=2e-5)


def test_the_mean_is_restored_and_only_by_the_rule_that_says_so(parts):
    plain = only(parts, "a red star")
    for emphasis in EMPHASES:
        weighed = only(parts, "a (red:1.8) star", emphasis=emphasis)
        red = slice(2, 2 + len(parts.tokenizer("red").input_ids) - 2)
        if emphasis == "original":
            assert torch.isclose(weighed.mean(), plain.mean(), atol=1e-6)
            assert not torch.allclose(weighed[0], plain[0])  # so that every other word moves a little
        elif emphasis == "no_norm":
            assert torch.equal(weighed[red], plain[red] * 1.8) and torch.equal(weighed[0], plain[0])
        elif emphasis == "ignore":
            assert torch.equal(weighed, plain)
        else:
            assert torch.equal(weighed, encode_prompts(parts, ["a (red:1.8) star"])[0])


def test_editing_alternation_and_the_second_pass_are_followed_by_step(parts):
    said = encode(parts, ask("a [red:blue:3] [cat|star]"))
    texts = ["a red cat", "a red star", "a red cat", "a blue star", "a blue cat"]
    for step, text in enumerate(texts):
        [(_, hidden)], _ = said.at(step, 10)
        assert torch.equal(hidden.hidden, encode_prompts(parts, [text])[0])
    late = encode(parts, ask("a [red:blue:1.5] star"))
    for step, text in ((0, "a red star"), (9, "a red star")):
        assert torch.equal(late.at(step, 10)[0][0][1].hidden, encode_prompts(parts, [text])[0])
    for step, text in ((3, "a red star"), (4, "a blue star")):
        assert torch.equal(late.at(step, 8, after_steps=10)[0][0][1].hidden, encode_prompts(parts, [text])[0])
    negative = encode(parts, ask("", "[red:blue:0.5]"))
    assert torch.equal(negative.at(4, 10)[1].hidden, encode_prompts(parts, ["red"])[0])
    assert torch.equal(negative.at(5, 10)[1].hidden, encode_prompts(parts, ["blue"])[0])


def test_and_gives_each_prompt_with_its_weight_and_is_a_word_in_the_negative_prompt(parts):
    said = encode(parts, ask("a red star :1.2 AND a [cat:dog:2] :-0.5", "a AND b"))
    positive, negative = said.at(0, 10)
    assert [weight for weight, _ in positive] == [1.2, -0.5]
    assert torch.equal(positive[0][1].hidden, encode_prompts(parts, ["a red star"])[0])
    assert torch.equal(positive[1][1].hidden, encode_prompts(parts, ["a cat"])[0])
    assert torch.equal(said.at(2, 10)[0][1][1].hidden, encode_prompts(parts, ["a dog"])[0])
    assert torch.equal(negative.hidden, encode_prompts(parts, ["a AND b"])[0])


def test_all_of_one_forward_have_one_length_filled_up_with_the_empty_chunk(parts):
    said = encode(parts, ask("a cat AND " + "star " * 80, "[" + "red " * 160 + "::3]"))
    assert said.chunks(10) == 3
    empty = encode_prompts(parts, [""])[0]
    for step in (0, 9):
        positive, negative = said.at(step, 10)
        shapes = {text.hidden.shape for text in [negative, *(text for _, text in positive)]}
        assert shapes == {torch.Size([231, 128])}
        cat = torch.cat([encode_prompts(parts, ["a cat"])[0], empty, empty])
        assert torch.equal(positive[0][1].hidden, cat)
    assert torch.equal(negative.hidden, empty.repeat(3, 1))
    longer = said.at(0, 10, chunks=5)[1].hidden
    assert longer.shape == (385, 128)
    assert torch.equal(longer[-77:], empty)


def test_more_parts_than_a_call_can_bear_are_refused(parts):
    assert len(encode(parts, ask(" AND ".join(["a cat"] * 32))).positive) == 32
    with pytest.raises(UserError, match="has 33 parts joined by AND") as refused:
        encode(parts, ask(" AND ".join(["a cat"] * 33)))
    assert refused.value.fix == "join at most 32."


def test_it_tells_how_many_tokens_are_read(parts):
    said = encode(parts, ask("a red star", "star " * 80))
    assert (said.tokens, said.negative_tokens, said.room) == (3, 80, 75)
    assert encode(parts, ask("a BREAK star")).tokens == 76
    assert encode(parts, ask("[a:a red star:0.5]")).tokens == 3


# --- chunks


def numbers(text: str) -> list[int]:
    return [{",": 1, "B": 2}.get(sign, 3) for sign in text]


def cut(text: str, table: EmbeddingTable | None = None, room: int = 75):
    """Read letters as tokens; a comma is 1, B is 2, all others 3."""
    from fastsd_lib.generation.chunks import Reader

    reader = Reader(lambda texts: [numbers(one) for one in texts], 90, 91, 91, 1, room)
    return read_chunks([Piece(text, 1.0)], reader, table)


def said(chunks) -> list[str]:
    sign = {1: ",", 2: "B", 3: "x", 0: "*"}
    return ["".join(sign[token] for token in chunk.tokens[1:] if token < 90) for chunk in chunks]


@pytest.mark.parametrize("back", [1, 19, 20, 21])
def test_a_full_chunk_ends_at_a_comma_that_is_near(back):
    text = "x" * (75 - back) + "," + "x" * (back + 9)
    chunks, count = cut(text)
    if back <= 20:
        assert said(chunks) == ["x" * (75 - back) + ",", "x" * (back + 9)]
        assert count == 75 + back + 9
    else:
        assert [len(one) for one in said(chunks)] == [75, 10]
    assert all(len(chunk.tokens) == len(chunk.weights) == 77 for chunk in chunks)


def test_a_comma_that_does_not_fit_begins_the_next_chunk_and_an_exact_fit_stays_whole():
    assert said(cut("x" * 75 + ",xx")[0]) == ["x" * 75, ",xx"]
    assert said(cut("x" * 60 + "," + "x" * 14)[0]) == ["x" * 60 + "," + "x" * 14]
    assert (said(cut("")[0]), cut("")[1]) == ([""], 0)
    assert cut("x" * 75)[1] == 75 and len(cut("x" * 75)[0]) == 1


@given(st.text(st.sampled_from("xB,"), max_size=60), st.integers(21, 30))
def test_no_token_is_lost_or_moved_whatever_the_commas(text, room):
    chunks, count = cut(text, room=room)
    assert "".join(said(chunks)) == "".join({1: ",", 2: "B", 3: "x"}[token] for token in numbers(text))
    assert count == (len(chunks) - 1) * room + len(said(chunks)[-1])


def test_a_learned_word_is_never_torn_and_moves_with_its_tokens():
    table = EmbeddingTable(
        {"BB": torch.ones(4, 2), "B": torch.ones(2, 2)}, lambda texts: [numbers(t) for t in texts]
    )
    chunks, _ = cut("x" * 73 + "BBx", table)
    assert said(chunks) == ["x" * 73, "****x"]
    assert [(at, one.name) for at, one in chunks[1].embeddings] == [(1, "BB")]
    chunks, _ = cut("x" * 65 + ",xBx" + "x" * 9, table)  # behind the last comma: it moves on with the rest
    assert said(chunks) == ["x" * 65 + ",", "x**x" + "x" * 9]
    assert chunks[0].embeddings == () and [at for at, _ in chunks[1].embeddings] == [2]


# --- learned words


def test_a_learned_word_puts_its_vectors_before_the_first_layer(parts):
    weight = parts.text_encoder.get_input_embeddings().weight
    ids = parts.tokenizer("red star", add_special_tokens=False).input_ids
    words = {"sks-word": weight[ids].clone()}  # learned to be these very tokens
    done = encode(parts, ask("a sks-word on blue"), embeddings=words)
    [(_, hidden)], _ = done.at(0, 10)
    assert torch.equal(hidden.hidden, encode_prompts(parts, ["a red star on blue"])[0])
    assert done.embeddings_used == ["sks-word"] and done.tokens == 2 + len(ids) + 1 and done.warnings == []
    weighed = only(parts, "a (sks-word:1.5) on blue", embeddings=words)
    assert torch.allclose(weighed, only(parts, "a (red star:1.5) on blue"), atol=1e-6)
    assert not parts.text_encoder.get_input_embeddings()._forward_hooks


def test_learned_words_that_do_not_fit_are_named_and_names_that_nobody_learned_are_not(parts):
    words = {"wide": torch.zeros(2, 768), "long": torch.zeros(99, 128), "unused": torch.zeros(1, 7)}
    done = encode(parts, ask("a wide long sks_unknown-embedding"), embeddings=words)
    assert done.warnings == [
        "the embedding 'wide' is made for another model: (2, 768), not (count, 128)",
        "the embedding 'long' has 99 vectors, and 75 is the most",
    ]
    said = done.at(0, 10)[0][0][1].hidden
    assert torch.equal(said, encode_prompts(parts, ["a wide long sks_unknown-embedding"])[0])


# --- tags, cache, errors


def test_tags_are_cut_out_and_those_not_in_force_are_a_warning(parts):
    request = ask("a red <lora:light:0.5>star # a note\n", "cat <lora:dark:1>")
    done = encode(parts, request)
    assert [(tag.kind, tag.name) for tag in done.tags] == [("lora", "light")]
    assert torch.equal(done.at(0, 10)[0][0][1].hidden, encode_prompts(parts, ["a red star"])[0])
    assert done.warnings == [
        "<lora:light:0.5> is not in force here",
        "<lora:dark:1> has no effect in the negative prompt",
    ]
    assert encode(parts, ask("a <lora:light:0.5>"), loaded=done.tags).warnings == []


def test_equal_texts_are_encoded_once_until_the_weights_are_another_state(parts):
    calls = []
    handle = parts.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    try:
        cache = EncodingCache()
        done = encode(parts, ask("a [red|blue] star", "cat"), cache=cache)
        for step in range(10):
            done.at(step, 10)
        encode(parts, ask("a red star", "cat"), cache=cache).at(0, 10)
        assert len(calls) == 3
        encode(parts, ask("a red star", "cat", clip_skip=2), cache=cache).at(0, 10)
        assert len(calls) == 5
        cache.state = "with a LoRA"
        encode(parts, ask("a red star", "cat"), cache=cache).at(0, 10)
        assert len(calls) == 7
    finally:
        handle.remove()


def test_the_same_name_with_other_vectors_is_not_taken_from_the_cache(parts):
    cache = EncodingCache()
    one, other = torch.zeros(1, 128), torch.ones(1, 128)
    first = only(parts, "a sks", embeddings={"sks": one}, cache=cache)
    assert not torch.equal(first, only(parts, "a sks", embeddings={"sks": other}, cache=cache))
    assert torch.equal(first, only(parts, "a sks", embeddings={"sks": one}, cache=cache))


def test_the_cache_forgets_the_oldest_when_it_is_full(parts):
    cache = EncodingCache(most_bytes=3 * 77 * 128 * 4)
    reader = TextReader(parts, cache=cache)
    for text in ("a", "b", "c"):
        reader.encode(text)
    reader.encode("a")
    reader.encode("d")
    assert [key[1] for key in cache._kept] == ["c", "a", "d"]
    assert cache._bytes == 3 * 77 * 128 * 4


@pytest.mark.parametrize(
    ("more", "message", "fix"),
    [
        ({"clip_skip": 0}, "clip_skip is 0, but the text encoder has 2 layers", "take 1 to 2"),
        ({"clip_skip": 3}, "clip_skip is 3", "1 skips nothing"),
        ({"emphasis": "loud"}, "No emphasis 'loud'", "original, no_norm, ignore, none"),
    ],
)
def test_values_no_model_can_follow_are_named(parts, more, message, fix):
    with pytest.raises(UserError, match=message) as error:
        only(parts, "a", **more)
    assert fix in error.value.fix


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a" * 100_001, "The prompt has 100,001 characters"),
        ("star " * 7_600, "The prompt has 7,600 tokens"),
        ("[a|" + "b " * 10_000 + "]", "The prompt changes 1000 times and is too long"),
    ],
)
def test_prompts_too_long_to_draw_are_refused_before_any_work(parts, prompt, message):
    with pytest.raises(UserError, match=message):
        encode(parts, ask(prompt, steps=1000))


@settings(max_examples=25)
@given(
    st.lists(st.sampled_from(["a", " ", ",", "(", ")", "[", "]", ":", "|", "\\", "1", " AND ", " BREAK ", "<lora:x>"]),
             max_size=25).map("".join),
)  # fmt: skip
def test_whatever_is_asked_gives_numbers_of_one_shape(parts, prompt):
    done = encode(parts, ask(prompt, prompt, steps=3))
    for step in range(3):
        positive, negative = done.at(step, 3)
        for _, hidden in positive:
            assert hidden.hidden.shape == negative.hidden.shape == (77 * done.chunks(3), 128)
            assert torch.isfinite(hidden.hidden).all()
