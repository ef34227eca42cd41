from pathlib import Path

import pytest
import torch
from diffusers.training_utils import EMAModel
from flwr.app import ConfigRecord, Message, RecordDict
from PIL import Image

from fl_sim import diffusion, network
from fl_sim.client_app import app, build_client_app, check_images, local_training, private_draw
from fl_sim.config import Settings, SettingsError
from fl_sim.draws import derive_seed
from fl_sim.images import folder
from fl_sim.images.partition import partition
from fl_sim.images.sources import list_images
from fl_sim.settings_file import dump_toml
from fl_sim.wire import ARRAYS, CLIENT, CONFIG, METRICS, ROUND, Recipe
from tests.fl_sim.federations import initial_arrays, node_context, tiny_recipe, tiny_settings, weights_recipe


def train_message(recipe: Recipe) -> Message:
    config = ConfigRecord({**recipe.to_config(), ROUND: 1})
    return Message(RecordDict({ARRAYS: initial_arrays(recipe), CONFIG: config}), dst_node_id=5, message_type="train")


def reply_of(recipe: Recipe, settings: Settings, client: int = 1) -> RecordDict:
    message = train_message(recipe)
    message.metadata.__dict__["_message_id"] = "1"
    return build_client_app(settings)(message, node_context(client)).content


def test_a_client_draws_from_its_own_images_and_differently_each_round() -> None:
    settings, recipe = tiny_settings(), tiny_recipe(batch_size=4)
    images, noise, timesteps, _ = private_draw(settings, recipe, 1, 1)
    held = list_images(settings.data).decode(partition(settings.data, 3, 11)[1])
    assert all(any(torch.equal(image, own) for own in held) for image in images)
    assert images.shape == noise.shape == (4, 3, 16, 16)
    assert timesteps.shape == (4,)
    for other in (private_draw(settings, recipe, 1, 2), private_draw(settings, recipe, 2, 1)):
        assert not any(torch.equal(a, b) for a, b in zip((images, noise, timesteps), other[:3], strict=True))


def test_the_private_seed_alone_decides_in_the_private_threat_model() -> None:
    one = private_draw(tiny_settings(), tiny_recipe(), 0, 1)
    same = private_draw(tiny_settings("seed=99"), tiny_recipe(), 0, 1)
    other = private_draw(tiny_settings("client.seed=12"), tiny_recipe(), 0, 1)
    assert all(torch.equal(a, b) for a, b in zip(one[:3], same[:3], strict=True))
    assert not torch.equal(one[1], other[1])


def test_in_the_known_threat_model_the_server_dictates_all_but_the_images() -> None:
    recipe = tiny_recipe(noise_seed=3)
    one = private_draw(tiny_settings(), recipe, 0, 1)
    other = private_draw(tiny_settings("client.seed=12"), recipe, 0, 1)
    assert not torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])
    assert torch.equal(one[2], other[2])


def folder_settings(path: Path, files: int, *overrides: str) -> Settings:
    for number in range(files):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(path / f"{number}.png")
    given = ("data.name=folder", f"data.path={path}", "data.partition=iid")
    return tiny_settings(*given, "federation.clients=2", "federation.rounds=2", *overrides)


def reds(images: torch.Tensor) -> list[int]:
    """How red the images of ``folder_settings`` are, which is the number of the file."""
    return ((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def test_a_client_decodes_what_it_draws_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, recipe = folder_settings(tmp_path, 40), tiny_recipe(batch_size=3)
    decoded, read = [], folder.read_rgb
    monkeypatch.setattr(folder, "read_rgb", lambda path, name: decoded.append(path) or read(path, name))
    drawn = private_draw(settings, recipe, 1, 1)[0]
    again = private_draw(settings, recipe, 1, 1)[0]
    assert torch.equal(drawn, again)
    assert len(decoded) == 3


def test_every_image_that_a_run_draws_is_decoded_before_it_starts(tmp_path: Path) -> None:
    settings, recipe = folder_settings(tmp_path, 40, "data.strict=true"), tiny_recipe(batch_size=2)
    check_images(settings, recipe)
    names = list_images(settings.data).photographs
    draws = (private_draw(settings, recipe, client, number)[0] for client in range(2) for number in (1, 2))
    drawn = {names.index(f"{red}.png") for images in draws for red in reds(images)}
    whole = (tmp_path / "0.png").read_bytes()
    for index, name in enumerate(names):
        path = tmp_path / name
        kept = path.read_bytes()
        path.write_bytes(whole[:-30])
        list_images.cache_clear()
        if index in drawn:
            with pytest.raises(SettingsError, match=rf"/{name}: not a readable image"):
                check_images(settings, recipe)
        else:
            check_images(settings, recipe)
            with pytest.raises(SettingsError, match=rf"/{name}: not a readable image"):
                check_images(settings, recipe, others=[index])
        path.write_bytes(kept)


def test_a_file_that_is_no_image_is_found_though_nobody_draws_it(tmp_path: Path) -> None:
    settings = folder_settings(tmp_path, 40, "data.strict=true")
    for number in range(40):
        (tmp_path / f"{number}.png").rename(tmp_path / f"{number}.kept")
        (tmp_path / f"{number}.png").touch()
        list_images.cache_clear()
        with pytest.raises(SettingsError, match=rf"/{number}\.png: not a readable image: the file is empty"):
            check_images(settings, tiny_recipe(batch_size=1))
        (tmp_path / f"{number}.kept").rename(tmp_path / f"{number}.png")


def test_broken_images_are_passed_over_and_all_who_look_agree(tmp_path: Path) -> None:
    settings, recipe = folder_settings(tmp_path, 12), tiny_recipe(batch_size=4)
    before = [reds(private_draw(settings, recipe, client, 1)[0]) for client in range(2)]
    broken = before[0][1], before[1][0]
    (tmp_path / f"{broken[0]}.png").write_bytes(b"")
    cut = tmp_path / f"{broken[1]}.png"
    cut.write_bytes(cut.read_bytes()[:-30])

    def drawn(look_first: bool) -> list[list[int]]:
        list_images.cache_clear()
        if look_first:
            check_images(settings, recipe)
        return [reds(private_draw(settings, recipe, client, 1)[0]) for client in range(2)]

    after = drawn(look_first=False)
    assert drawn(look_first=True) == after
    assert len(list_images(settings.data).broken) == 2
    for kept, now, gone in zip(before, after, broken, strict=True):
        assert now[:3] == [red for red in kept if red != gone], "the others keep their order"
        assert len(now) == 4
        assert gone not in now


def test_a_client_without_a_sound_image_is_named(tmp_path: Path) -> None:
    settings = folder_settings(tmp_path, 9)
    for file in tmp_path.iterdir():
        file.write_bytes(b"")
    with pytest.raises(SettingsError, match=r"client 0 holds no image that can be read: .*\.png: .* the file is empty"):
        check_images(settings, tiny_recipe())


def test_a_grey_recipe_draws_grey_images() -> None:
    images = private_draw(tiny_settings(), tiny_recipe(batch_size=2, image_shape=(1, 16, 16)), 0, 1)[0]
    assert images.shape == (2, 1, 16, 16)


def test_a_client_with_images_of_another_size_says_so() -> None:
    with pytest.raises(
        SettingsError, match=r"data\.image_size: the server trains on images of 16x16 .*client has 32x32"
    ):
        reply_of(tiny_recipe(), tiny_settings("data.image_size=32", "model.checkpoint=none"))


def test_an_unresolved_private_seed_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"client\.seed"):
        private_draw(Settings(), tiny_recipe(), 0, 1)


def test_a_gradient_reply_is_the_gradient_of_the_draw() -> None:
    recipe, settings = tiny_recipe(batch_size=2), tiny_settings()
    update = reply_of(recipe, settings)[ARRAYS].to_torch_state_dict()
    model = network.build_model(recipe.model)
    model.load_state_dict(initial_arrays(recipe).to_torch_state_dict())
    expected = diffusion.gradient(
        model, diffusion.build_scheduler(recipe.task.scheduler), *private_draw(settings, recipe, 1, 1)
    )
    assert list(update) == list(expected)
    torch.testing.assert_close(update, expected)


@pytest.mark.parametrize(("optimizer", "momentum"), [("sgd", 0.0), ("sgd", 0.9), ("adam", 0.0), ("adamw", 0.0)])
def test_a_weights_reply_is_what_torchs_optimiser_makes_of_the_batches(optimizer: str, momentum: float) -> None:
    recipe, settings = weights_recipe(3, optimizer, momentum), tiny_settings()
    decay = 0.1 if optimizer == "adamw" else 0.0
    local = recipe.optimizer.model_copy(update={"weight_decay": decay})
    recipe = recipe.model_copy(update={"optimizer": local})
    update = reply_of(recipe, settings)[ARRAYS].to_torch_state_dict()
    model = network.build_model(recipe.model)
    model.load_state_dict(initial_arrays(recipe).to_torch_state_dict())
    reference = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=momentum),
        "adam": lambda p: torch.optim.Adam(p, lr=0.01),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    }[optimizer](model.parameters())
    for step in private_draw(settings, recipe, 1, 1).batches(1):
        gradient = diffusion.gradient(model, diffusion.build_scheduler(recipe.task.scheduler), *step)
        for name, parameter in model.named_parameters():
            parameter.grad = gradient[name]
        reference.step()
    torch.testing.assert_close(update, dict(model.state_dict()))


def test_fed_proxs_term_and_the_largest_norm_are_honoured_in_every_step() -> None:
    optimizer = network.LocalOptimizer(lr=0.01, momentum=0.9, proximal_mu=5.0, max_grad_norm=0.2)
    recipe, settings = weights_recipe(3).model_copy(update={"optimizer": optimizer}), tiny_settings()
    update = reply_of(recipe, settings)[ARRAYS].to_torch_state_dict()
    model = network.build_model(recipe.model)
    model.load_state_dict(initial_arrays(recipe).to_torch_state_dict())
    sent = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    reference = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    norms = []
    for step in private_draw(settings, recipe, 1, 1).batches(1):
        reference.zero_grad()
        distance = sum((parameter - sent[name]).square().sum() for name, parameter in model.named_parameters())
        (diffusion.loss(model, diffusion.build_scheduler(recipe.task.scheduler), *step) + 2.5 * distance).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.2)))
        reference.step()
    assert max(norms) > 0.2
    torch.testing.assert_close(update, dict(model.state_dict()))


def test_the_average_of_the_weights_is_that_of_diffusers() -> None:
    recipe, settings = weights_recipe(3).model_copy(update={"ema_decay": 0.2}), tiny_settings()
    average = reply_of(recipe, settings)[ARRAYS].to_torch_state_dict()
    weights = initial_arrays(recipe).to_torch_state_dict()
    parameters = [torch.nn.Parameter(value) for value in weights.values()]
    reference, draw = EMAModel(parameters, decay=0.2), private_draw(settings, recipe, 1, 1)
    for steps in (1, 2, 3):
        some = recipe.model_copy(update={"local_steps": steps, "ema_decay": None})
        after, _ = local_training(some, weights, next(draw.batches(steps)), "cpu")
        for parameter, name in zip(parameters, weights, strict=True):
            parameter.data = after[name]
        reference.step(parameters)
    torch.testing.assert_close(average, dict(zip(weights, reference.shadow_params, strict=True)))
    assert not torch.equal(average["conv_in.weight"], parameters[0])


@pytest.mark.parametrize("update", ["gradient", "weights"])
def test_batches_whose_gradients_are_accumulated_count_as_one(update: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = (tiny_recipe() if update == "gradient" else weights_recipe(2)).model_copy(update={"batch_size": 4})
    settings, sizes, gradient = tiny_settings(), [], diffusion.DiffusionTask.gradient_and_loss
    whole = reply_of(plain, settings)[ARRAYS].to_torch_state_dict()
    monkeypatch.setattr(
        diffusion.DiffusionTask, "gradient_and_loss", lambda *args: sizes.append(len(args[2])) or gradient(*args)
    )
    parts = reply_of(plain.model_copy(update={"gradient_accumulation": 2}), settings)[ARRAYS].to_torch_state_dict()
    assert sizes == [2, 2] * (1 if update == "gradient" else 2)
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-6)


def test_batches_of_unequal_size_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size = 3: not a multiple of gradient_accumulation = 2"):
        tiny_recipe(batch_size=3, gradient_accumulation=2)


def test_images_are_mirrored_as_the_private_seed_says_and_nothing_else_changes() -> None:
    plain = tiny_recipe(batch_size=16)
    recipe = plain.model_copy(update={"horizontal_flip": True})
    before, after = (private_draw(tiny_settings(), each, 1, 1) for each in (plain, recipe))
    mirrored = [torch.equal(image, own.flip(-1)) for own, image in zip(before[0], after[0], strict=True)]
    kept = [torch.equal(image, own) for own, image in zip(before[0], after[0], strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 3 < sum(mirrored) < 13
    assert torch.equal(before.noise, after.noise)
    assert torch.equal(before.timesteps, after.timesteps)
    dictated = plain.model_copy(update={"noise_seed": 3}), recipe.model_copy(update={"noise_seed": 3})
    one, other = (private_draw(tiny_settings(), each, 1, 1)[0] for each in dictated)
    assert not torch.equal(one, other)  # also where the server dictates all that it can


def with_loss(recipe: Recipe, **changes: float) -> Recipe:
    return recipe.model_copy(update={"task": recipe.task.model_copy(update=changes)})


@pytest.mark.parametrize("noise_seed", [None, 3], ids=["private", "known"])
def test_offset_noise_is_the_same_noise_with_moved_channels(noise_seed: int | None) -> None:
    recipe = tiny_recipe(batch_size=2, noise_seed=noise_seed)
    plain = private_draw(tiny_settings(), recipe, 1, 1)
    offset = private_draw(tiny_settings(), with_loss(recipe, noise_offset=0.1), 1, 1)
    moved = (offset[1] - plain[1]).flatten(2)
    torch.testing.assert_close(moved, moved[..., :1].expand_as(moved), rtol=0, atol=1e-5)
    assert moved.abs().amin() > 0
    assert torch.equal(offset[2], plain[2])


def test_min_snr_weighs_what_a_client_sends() -> None:
    recipe, settings = with_loss(tiny_recipe(batch_size=2), min_snr_gamma=5.0), tiny_settings()
    update = reply_of(recipe, settings)[ARRAYS].to_torch_state_dict()
    model = network.build_model(recipe.model)
    model.load_state_dict(initial_arrays(recipe).to_torch_state_dict())
    draw = private_draw(settings, recipe, 1, 1)
    expected = diffusion.gradient(model, diffusion.build_scheduler(recipe.task.scheduler), *draw, min_snr_gamma=5.0)
    torch.testing.assert_close(update, expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("defence", ["none", "clip-noise"])
def test_what_is_sent_is_rounded_after_whatever_a_defence_did(dtype: str, defence: str) -> None:
    settings = tiny_settings(f"defence.name={defence}")
    for recipe in (tiny_recipe(), weights_recipe()):
        exact = reply_of(recipe, settings)[ARRAYS].to_torch_state_dict()
        sent = reply_of(recipe.model_copy(update={"dtype": dtype}), settings)[ARRAYS].to_torch_state_dict()
        rounded = {name: value.to(getattr(torch, dtype)).float() for name, value in exact.items()}
        assert not all(torch.equal(rounded[name], exact[name]) for name in exact)
        torch.testing.assert_close(sent, rounded, rtol=0, atol=0)


def test_an_update_is_clipped_to_the_norm_that_the_server_sends() -> None:
    recipe, settings = weights_recipe(), tiny_settings()
    message = train_message(recipe)
    message.metadata.__dict__["_message_id"] = "1"
    message.content.config_records[CONFIG]["clipping_norm"] = 1e-3
    reply = build_client_app(settings)(message, node_context(1)).content
    sent, clipped = initial_arrays(recipe).to_torch_state_dict(), reply[ARRAYS].to_torch_state_dict()
    whole = reply_of(recipe, settings)[ARRAYS].to_torch_state_dict()
    norms = [
        sum((arrays[name] - sent[name]).double().square().sum() for name in sent).sqrt() for arrays in (clipped, whole)
    ]
    assert norms[1] > 0.01
    assert float(norms[0]) == pytest.approx(1e-3, rel=1e-3)
    assert reply[METRICS]["norm_bit"] == 1


def test_with_epochs_a_client_trains_on_every_image_that_it_holds_as_often() -> None:
    settings, recipe = tiny_settings("data.limit=7"), weights_recipe()
    recipe = recipe.model_copy(update={"epochs": 2, "batch_size": 2, "noise_seed": 5})
    held = partition(settings.data, 3, 11)[1]
    images, noise, timesteps, _ = private_draw(settings, recipe, 1, 1)
    assert len(images) == len(noise) == len(timesteps) == 2 * len(held)
    own = list_images(settings.data).decode(held)
    times = [sum(torch.equal(image, one) for image in images) for one in own]
    assert times == [2] * len(held)
    assert reply_of(recipe, settings)[METRICS]["num-examples"] == 2 * len(held)


def test_the_learning_rate_is_that_of_the_round() -> None:
    settings = tiny_settings()
    falling = weights_recipe(1).model_copy(update={"lr_schedule": "linear", "rounds": 2})
    message = train_message(falling)
    message.metadata.__dict__["_message_id"] = "1"
    message.content.config_records[CONFIG][ROUND] = 2
    late = build_client_app(settings)(message, node_context(1)).content[ARRAYS].to_torch_state_dict()
    half = falling.optimizer.model_copy(update={"lr": 0.005})
    weights = initial_arrays(falling).to_torch_state_dict()
    draw = private_draw(settings, falling, 1, 2)
    expected, _ = local_training(falling.model_copy(update={"optimizer": half}), weights, draw, "cpu")
    assert all(torch.equal(late[name], expected[name]) for name in expected)


def test_training_repeats_bit_for_bit() -> None:
    recipe = weights_recipe()
    replies = [reply_of(recipe, tiny_settings())[ARRAYS].to_torch_state_dict() for _ in range(2)]
    assert all(torch.equal(replies[0][name], replies[1][name]) for name in replies[0])


def test_a_reply_carries_the_update_and_nothing_private() -> None:
    recipe = tiny_recipe()
    reply = reply_of(recipe, tiny_settings())
    assert set(reply) == {ARRAYS, METRICS, CLIENT}
    assert set(reply[METRICS]) == {"num-examples", "train_loss"}
    assert set(reply[CLIENT]) == {"partition", "device"}
    assert set(reply[ARRAYS]) == set(network.trainable_parameters(network.build_model(recipe.model)))
    assert reply[METRICS]["num-examples"] == 1


def test_weights_without_an_optimiser_are_refused() -> None:
    recipe = tiny_recipe(update="weights")
    weights = initial_arrays(recipe).to_torch_state_dict()
    with pytest.raises(ValueError, match=r"recipe\.optimizer"):
        local_training(recipe, weights, private_draw(tiny_settings(), recipe, 0, 1), "cpu")


def test_under_flwr_run_the_client_reads_the_run_directory_and_ignores_the_attack(tmp_path: Path) -> None:
    settings, recipe = tiny_settings(), tiny_recipe()
    (tmp_path / "run-1").mkdir()
    (tmp_path / "run-1" / "config.toml").write_text(dump_toml(settings) + '\n[attack]\nname = "residual"\n')
    context = node_context(1)
    context.run_config = {"out": str(tmp_path)}
    message = train_message(recipe)
    message.metadata.__dict__["_message_id"] = "1"
    update = app(message, context).content[ARRAYS].to_torch_state_dict()
    expected = reply_of(recipe, settings)[ARRAYS].to_torch_state_dict()
    assert all(torch.equal(update[name], expected[name]) for name in expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_client_trains_on_cuda_and_agrees_with_the_cpu() -> None:
    recipe, settings = tiny_recipe(batch_size=2), tiny_settings()
    reply = reply_of(recipe, settings)
    assert reply[CLIENT]["device"] == "cuda"
    weights = initial_arrays(recipe).to_torch_state_dict()
    expected, _ = local_training(recipe, weights, private_draw(settings, recipe, 1, 1), "cpu")
    torch.testing.assert_close(reply[ARRAYS].to_torch_state_dict(), expected, rtol=1e-3, atol=1e-5)


def with_dropout(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"model": recipe.model | {"dropout": 0.5}})


@pytest.mark.parametrize("recipe", [tiny_recipe(), weights_recipe()], ids=["gradient", "weights"])
def test_dropout_masks_come_from_the_private_seed_and_move_no_other_draw(recipe: Recipe) -> None:
    recipe = with_dropout(recipe)
    torch.manual_seed(1)
    one = reply_of(recipe, tiny_settings())[ARRAYS].to_torch_state_dict()
    torch.manual_seed(2)
    same = reply_of(recipe, tiny_settings())[ARRAYS].to_torch_state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    draw = private_draw(tiny_settings(), recipe, 1, 1)
    weights = initial_arrays(recipe).to_torch_state_dict()
    masks = [derive_seed(private, "dropout", 1, 1) for private in (11, 12)]
    before = torch.get_rng_state()
    own, others = (local_training(recipe, weights, draw, "cpu", dropout_seed=seed)[0] for seed in masks)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], own[name]) for name in one)
    assert not all(torch.equal(one[name], others[name]) for name in one)
