"""Choosing a token: greedy, seeded, and from the nucleus only."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_worker.core.sampling import Choice, choose_token, draw_token, find_nucleus

LOGITS = np.array([1.0, 3.0, 2.0, -1.0, 2.5], np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def choose(*, seed: int = 0, temperature: float = 1.0, top_p: float = 1.0) -> Choice:
    return choose_token(
        LOGITS, temperature=temperature, top_p=top_p, generator=np.random.default_rng(seed)
    )


def test_temperature_zero_takes_the_best_and_draws_nothing() -> None:
    generator = np.random.default_rng(3)
    before = generator.bit_generator.state
    assert choose_token(LOGITS, temperature=0.0, top_p=0.5, generator=generator).token == 1
    assert generator.bit_generator.state == before


def test_of_equal_logits_the_first_is_the_best() -> None:
    logits = np.array([0.0, 2.0, 2.0], np.float32)
    assert choose_token(logits, temperature=0.0, top_p=1.0, generator=None).token == 1


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
def test_the_log_probability_is_the_models_whatever_the_temperature(temperature: float) -> None:
    choice = choose(temperature=temperature)
    assert choice.logprob == pytest.approx(float(np.log(softmax(LOGITS)[choice.token])), rel=1e-5)


def test_the_same_seed_draws_the_same_tokens() -> None:
    generators = [np.random.default_rng(11) for _ in range(2)]
    first, second = (
        [
            choose_token(LOGITS, temperature=1.3, top_p=0.9, generator=generator).token
            for _ in range(50)
        ]
        for generator in generators
    )
    assert first == second
    assert len(set(first)) > 1


def test_each_token_takes_one_draw() -> None:
    """So that a stream of draws can be continued from the number of tokens alone."""
    used, fresh = np.random.default_rng(5), np.random.default_rng(5)
    choose_token(LOGITS, temperature=1.0, top_p=0.7, generator=used)
    fresh.random()
    assert used.bit_generator.state == fresh.bit_generator.state


def test_tokens_are_drawn_as_often_as_they_are_probable() -> None:
    generator = np.random.default_rng(1)
    drawn = [
        draw_token(LOGITS, temperature=1.0, top_p=1.0, generator=generator) for _ in range(20_000)
    ]
    shares = np.bincount(drawn, minlength=LOGITS.size) / len(drawn)
    assert np.abs(shares - softmax(LOGITS)).max() < 0.015


def test_a_low_temperature_makes_the_best_more_frequent() -> None:
    generator = np.random.default_rng(1)
    drawn = [draw_token(LOGITS, temperature=0.05, top_p=1.0, generator=generator) for _ in range(9)]
    assert set(drawn) == {1}


def test_nothing_outside_the_nucleus_is_drawn() -> None:
    # Probabilities 0.47, 0.28, 0.17, ...: the best two are the smallest set with half of the mass.
    assert {choose(seed=seed, top_p=0.5).token for seed in range(300)} == {1, 4}


def test_a_tiny_nucleus_is_the_best_token() -> None:
    assert {choose(seed=seed, top_p=1e-9).token for seed in range(50)} == {1}


@given(
    weights=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.5]), min_size=1, max_size=700),
    top_p=st.floats(0.01, 0.999),
)
def test_the_nucleus_is_the_smallest_set_with_the_mass(weights: list[float], top_p: float) -> None:
    array = np.array([*weights, 1.0])
    nucleus = find_nucleus(array, top_p=top_p)
    mass = array[nucleus].sum()
    assert mass >= top_p * array.sum() - 1e-9
    assert mass - array[nucleus[-1]] < top_p * array.sum() + 1e-9
    assert len(set(nucleus.tolist())) == len(nucleus)
    rest = np.delete(array, nucleus)
    assert rest.size == 0 or rest.max() <= array[nucleus[-1]]


def test_a_nucleus_larger_than_the_first_guess_is_found_whole() -> None:
    array = np.ones(5_000)
    assert find_nucleus(array, top_p=0.5).tolist() == list(range(2_500))


def test_a_draw_that_rounding_pushes_to_the_end_stays_inside() -> None:
    class Last:
        def random(self) -> float:
            return 1.0

    assert draw_token(LOGITS, temperature=1.0, top_p=1.0, generator=Last()) == 4  # type: ignore[arg-type]  # the extreme that no seed gives


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_an_error(bad: float) -> None:
    logits = LOGITS.copy()
    logits[2] = bad
    with pytest.raises(ValueError, match="not numbers"):
        choose_token(logits, temperature=0.0, top_p=1.0, generator=None)


def test_sampling_without_a_generator_is_an_error() -> None:
    with pytest.raises(ValueError, match="generator"):
        choose_token(LOGITS, temperature=0.7, top_p=1.0, generator=None)


def test_the_logits_are_not_changed() -> None:
    logits = LOGITS.copy()
    logits.flags.writeable = False
    choose_token(logits, temperature=0.7, top_p=0.5, generator=np.random.default_rng(0))
    assert (logits == LOGITS).all()
