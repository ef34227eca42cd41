from experiments.experiment import prepare
from experiments.privacy import most_spent, privacy_spent
from fl_sim.repeatable_grid import RoundLog
from tests.experiments.made_up_run import tiny_settings


def test_the_client_that_was_asked_most_often_has_spent_most() -> None:
    experiment = prepare(tiny_settings("defence.name=clip-noise", "defence.args.noise_multiplier=4.0"))

    def log(number: int, *asked: int) -> RoundLog:
        return RoundLog(number, asked, asked[:1], (0.1,), ("cpu",), {})

    spent = privacy_spent(experiment, [log(1, 0), log(2, 0, 1), log(3, 1), log(4, 1)])
    once_less, most = (experiment.defence.privacy(experiment.recipe, 1, times) for times in (2, 3))
    assert spent == {0: once_less, 1: most}
    assert most_spent(spent) == most
    assert privacy_spent(prepare(tiny_settings()), [log(1, 0)]) == {}
    assert most_spent({}) is None
