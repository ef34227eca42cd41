import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from pydantic import ValidationError

from fl_sim.draws import derive_seed, draw_noise_and_timesteps
from fl_sim.network import LocalOptimizer, build_model
from fl_sim.wire import Recipe, arrays_in, dictated_draw, pack_reply, read_tensors, read_update
from tests.fl_sim.federations import tiny_recipe, weights_recipe


@pytest.mark.parametrize(
    "recipe", [tiny_recipe(noise_seed=4), weights_recipe(3, "adam")], ids=["known gradient", "private weights"]
)
def test_a_recipe_survives_the_wire(recipe: Recipe) -> None:
    assert Recipe.from_config(recipe.to_config()) == recipe


def test_fed_proxs_term_joins_the_recipe_on_the_way() -> None:
    recipe = weights_recipe()
    config = ConfigRecord({**recipe.to_config(), "proximal-mu": 0.5})
    assert Recipe.from_config(config).optimizer == recipe.optimizer.model_copy(update={"proximal_mu": 0.5})


def test_the_learning_rate_falls_from_round_to_round() -> None:
    def rates(schedule: str) -> list[float]:
        recipe = weights_recipe().model_copy(update={"lr_schedule": schedule, "rounds": 4})
        return [recipe.in_round(number).optimizer.lr for number in (1, 2, 3, 4, 5)]

    assert rates("constant") == [0.01] * 5
    assert rates("linear") == pytest.approx([0.01, 0.0075, 0.005, 0.0025, 0.0025])
    half = 0.5**0.5 / 2
    assert rates("cosine") == pytest.approx(
        [0.01, 0.01 * (0.5 + half), 0.005, 0.01 * (0.5 - half), 0.01 * (0.5 - half)]
    )
    assert tiny_recipe().in_round(3) == tiny_recipe()


@pytest.mark.parametrize(("images", "steps"), [(12, 6), (7, 3), (2, 1), (1, 1)])
def test_epochs_become_local_steps_by_what_a_client_holds(images: int, steps: int) -> None:
    recipe = weights_recipe().model_copy(update={"epochs": 2, "batch_size": 4})
    assert recipe.samples(images) == 4 * steps
    assert recipe.of_samples(4 * steps).local_steps == steps
    assert weights_recipe(3).samples(images) == 3
    assert weights_recipe(3).of_samples(8) == weights_recipe(3)


def test_an_unknown_key_in_a_recipe_is_refused() -> None:
    with pytest.raises(ValidationError, match="client_seed"):
        tiny_recipe(client_seed=1)


def reply(arrays: dict[str, torch.Tensor]) -> Message:
    content = pack_reply(arrays, num_examples=2, train_loss=0.5, partition=1, device="cpu")
    return Message(content, dst_node_id=1, message_type="train")


def test_a_reply_has_the_one_array_and_one_metric_record_that_flower_wants() -> None:
    content = reply({"w": torch.ones(2)}).content
    assert len(content.array_records) == len(content.metric_records) == 1
    assert content["metrics"] == MetricRecord({"num-examples": 2, "train_loss": 0.5})


def test_a_gradient_is_read_as_it_is_and_weights_become_a_difference() -> None:
    after = build_model(weights_recipe().model).state_dict()
    name = "conv_in.bias"
    after[name] = torch.full_like(after[name], 3.0, dtype=torch.float64)
    sent = {key: value.float() for key, value in after.items()} | {name: torch.full_like(after[name], 1.0)}
    gradient = read_update(sent, arrays_in(reply(after).content), tiny_recipe())[name]
    delta = read_update(sent, arrays_in(reply(after).content), weights_recipe())
    assert gradient.dtype == delta[name].dtype == torch.float32
    assert set(gradient.tolist()) == {3.0}
    assert set(delta.pop(name).tolist()) == {2.0}
    assert not any(value.any() for value in delta.values())


def test_a_difference_holds_trainable_parameters_only() -> None:
    recipe = weights_recipe()
    recipe = recipe.model_copy(update={"model": {**recipe.model, "time_embedding_type": "fourier"}})
    after = build_model(recipe.model).state_dict()
    frozen = "time_proj.weight"
    assert frozen in after
    assert set(read_update(after, arrays_in(reply(after).content), recipe)) == set(after) - {frozen}


def test_arrays_cross_bit_for_bit() -> None:
    value = torch.randn(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ArrayRecord({"w": value}).to_torch_state_dict()["w"], value)


def test_the_dictated_draw_follows_the_noise_seed_client_and_round() -> None:
    recipe = tiny_recipe(noise_seed=9, batch_size=3, optimizer=LocalOptimizer(lr=1.0))
    noise, timesteps = dictated_draw(recipe, 2, 5)
    expected = draw_noise_and_timesteps(derive_seed(9, "noise", 2, 5), 3, (3, 16, 16), 1000)
    assert torch.equal(noise, expected[0])
    assert torch.equal(timesteps, expected[1])
    assert not torch.equal(noise, dictated_draw(recipe, 2, 6)[0])
    with pytest.raises(ValueError, match="noise_seed"):
        dictated_draw(tiny_recipe(), 2, 5)


@pytest.mark.parametrize(
    "values",
    [
        np.array(2.5, np.float32),
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        np.zeros((0, 3), np.float32),
        np.arange(4, dtype=np.float16),
    ],
    ids=["scalar", "matrix", "fortran", "empty", "half"],
)
def test_arrays_are_read_as_flower_reads_them(values: np.ndarray) -> None:
    content = RecordDict({"arrays": ArrayRecord({"w": Array(values)})})
    read = read_tensors(arrays_in(content))["w"]
    assert read.shape == values.shape
    assert read.numpy().dtype == values.dtype
    assert np.array_equal(read.numpy(), values)


def test_what_comes_after_an_array_hides_it_from_nobody() -> None:
    array = Array(np.ones(2, np.float32))
    longer = Array("float32", (2,), "numpy.ndarray", array.data + b"\0")
    assert longer.numpy().tolist() == [1, 1]
    assert read_tensors({"w": longer})["w"].tolist() == [1, 1]


@pytest.mark.parametrize(
    "array",
    [
        Array("float32", (2,), "numpy.ndarray", b"\x93NUMPY"),
        Array("float32", (2,), "pickle", b""),
        Array("float32", (2,), "numpy.ndarray", Array(np.ones(2, np.float32)).data[:-1]),
        Array("object", (1,), "numpy.ndarray", Array(np.ones(1)).data.replace(b"'<f8'", b"'|O' ")),
    ],
    ids=["header only", "another format", "cut short", "objects"],
)
def test_what_is_no_array_of_numbers_is_refused(array: Array) -> None:
    content = RecordDict({"arrays": ArrayRecord({"w": array})})
    with pytest.raises((ValueError, TypeError)):
        read_tensors(arrays_in(content))


@pytest.mark.parametrize("recipe", [tiny_recipe(), weights_recipe()], ids=["gradient", "weights"])
def test_names_and_shapes_that_are_not_the_models_are_named(recipe: Recipe) -> None:
    own = build_model(recipe.model).state_dict()
    prefixed = arrays_in(reply({f"unet.{name}": value for name, value in own.items()}).content)
    with pytest.raises(ValueError, match=r"unet\.conv_in.* is no parameter .*the model's: conv_in.*without 'unet\.'"):
        read_update(own, prefixed, recipe)
    reshaped = arrays_in(reply(own | {"conv_in.bias": own["conv_in.bias"][:, None]}).content)
    with pytest.raises(ValueError, match=r"a reply's conv_in.bias has shape \[8, 1\], the model has \[8\]"):
        read_update(own, reshaped, recipe)


def test_weights_may_not_be_missing_and_may_come_with_others() -> None:
    own = build_model(weights_recipe().model).state_dict()
    assert set(read_update(own, arrays_in(reply(own | {"ema": torch.ones(1)}).content), weights_recipe())) == set(own)
    without = {name: value for name, value in own.items() if name != "conv_in.bias"}
    with pytest.raises(ValueError, match=r"a reply's conv_in\.bias is missing"):
        read_update(own, arrays_in(reply(without).content), weights_recipe())
    gradient = read_update(own, arrays_in(reply(without).content), tiny_recipe())
    assert set(gradient) == set(without)


def test_bfloat16_which_numpy_does_not_have_is_one_line() -> None:
    data = Array(np.ones(2, np.float16)).data.replace(b"'<f2'", b"'<V2'")
    with pytest.raises(ValueError, match=r"w is of type bfloat16 .*allowed: .*float32"):
        read_tensors({"w": Array("bfloat16", (2,), "numpy.ndarray", data)})
